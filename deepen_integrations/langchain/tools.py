"""Converts every kind of tool that LangChain accepts to OpenAI's format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from deepen_core.errors import SamplingError


def tool_definition(tool: Mapping[str, Any] | type | Callable[..., Any] | BaseTool) -> dict[str, Any]:
    """Returns the definition of a tool in OpenAI's format.

    Args:
        tool: A tool, a function, a pydantic class, a TypedDict, a JSON schema with a title, or a definition.

    Raises:
        SamplingError: If it is not one of these.
    """
    try:
        definition = convert_to_openai_tool(tool)
    except (AttributeError, TypeError, ValueError) as problem:  # LangChain's own, on unexpected input
        raise SamplingError(f"This is not a tool: {' '.join(str(problem).split())}") from problem
    schema = _schema(tool)
    if schema is None:
        return definition
    parameters = {key: value for key, value in schema.items() if key not in {"title", "description"}}
    return {**definition, "function": {**definition["function"], "parameters": parameters}}


def _schema(tool: Any) -> Mapping[str, Any] | None:
    """The schema of the arguments, where LangChain's conversion loses part of it: self-references and unions."""
    arguments = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    if isinstance(arguments, type) and issubclass(arguments, BaseModel):
        return arguments.model_json_schema()
    if isinstance(tool, BaseTool) and isinstance(arguments, Mapping):
        return arguments
    if isinstance(tool, Mapping) and "title" in tool and not {"name", "function"} & tool.keys():
        return tool
    return None
