"""Tools of any kind that LangChain knows, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from deepen_core.errors import SamplingError


def tool_definition(tool: Mapping[str, Any] | type | Callable[..., Any] | BaseTool) -> dict[str, Any]:
    """The definition of a tool.

    Args:
        tool: A tool, a function, a pydantic class, a TypedDict, a JSON schema with a title, or a definition.

    Raises:
        SamplingError: If it is none of these.
    """
    try:
        definition = convert_to_openai_tool(tool)
    except (AttributeError, TypeError, ValueError) as problem:  # what LangChain does not expect
        raise SamplingError(f"This is no tool: {' '.join(str(problem).split())}") from problem
    schema = _schema(tool)
    if schema is None:
        return definition
    parameters = {key: value for key, value in schema.items() if key not in {"title", "description"}}
    return {**definition, "function": {**definition["function"], "parameters": parameters}}


def _schema(tool: Any) -> Mapping[str, Any] | None:
    """The schema of the arguments where LangChain loses some of it: of classes that refer to themselves, of unions."""
    arguments = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    if isinstance(arguments, type) and issubclass(arguments, BaseModel):
        return arguments.model_json_schema()
    if isinstance(tool, BaseTool) and isinstance(arguments, Mapping):
        return arguments
    if isinstance(tool, Mapping) and "title" in tool and not {"name", "function"} & tool.keys():
        return tool
    return None
