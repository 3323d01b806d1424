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
    except (TypeError, ValueError) as problem:
        raise SamplingError(f"This is no tool: {' '.join(str(problem).split())}") from problem
    arguments = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    if isinstance(arguments, type) and issubclass(arguments, BaseModel):
        # LangChain puts in what references stand for, and loses those of a class to itself.
        told = {"title", "description"}  # by the function
        parameters = {key: value for key, value in arguments.model_json_schema().items() if key not in told}
        return {**definition, "function": {**definition["function"], "parameters": parameters}}
    return definition
