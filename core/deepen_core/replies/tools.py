"""Tool definitions, and which of the tools the model may call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import Self

from deepen_core.config.base import shown
from deepen_core.config.constraints import plain_schema
from deepen_core.errors import SamplingError

CallPolicy = Literal["never", "maybe", "must"]
_POLICIES: dict[Any, CallPolicy] = {
    None: "maybe",
    "auto": "maybe",
    "none": "never",
    False: "never",
    "any": "must",
    "required": "must",
    True: "must",
}


@dataclass(frozen=True)
class Tool:
    """A function that a model may ask the caller to run."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema of the arguments, an object."""
    strict: bool = False
    """Whether decoding must follow all of the schema; else a part that it cannot follow is checked afterwards."""

    @classmethod
    def from_openai(cls, definition: Any) -> Self:
        """Reads OpenAI's form, `{"type": "function", "function": {"name": ..., "parameters": ...}}`.

        Raises:
            SamplingError: If it has another form.
        """
        is_function = isinstance(definition, Mapping) and definition.get("type") == "function"
        function = definition.get("function") if is_function else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise SamplingError(
                f"{shown(definition)} is not a tool: give {{'type': 'function', 'function': {{'name': ..., "
                "'description': ..., 'parameters': ...}}."
            )
        try:
            parameters = plain_schema(function.get("parameters") or {})
        except ValueError as problem:
            raise SamplingError(
                f"The parameters of tool {function['name']!r} are not a schema: {problem}."
            ) from problem
        if parameters.get("type", "object") != "object":
            raise SamplingError(f"The parameters of tool {function['name']!r} are not a JSON schema of an object.")
        strict = function.get("strict") is True
        return cls(function["name"], function.get("description") or "", parameters, strict)

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the arguments; an object without properties if the tool declares none."""
        elsewhere = self.parameters.keys() & {"$ref", "anyOf", "oneOf", "allOf"}
        return {**({} if elsewhere else {"properties": {}}), **self.parameters, "type": "object"}

    @property
    def described(self) -> str:
        """The definition that models are shown, in the form of chat templates with tools."""
        function = {"name": self.name, "description": self.description, "parameters": self.schema}
        return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def read_tools(definitions: Any) -> tuple[Tool, ...]:
    """Reads a list of definitions in OpenAI's form; duplicates count once.

    Raises:
        SamplingError: If it is not a list, one has another form, or two different ones have the same name.
    """
    if not isinstance(definitions, (list, tuple)):
        raise SamplingError(f"tools is {shown(definitions)}: give a list of definitions.")
    tools: dict[str, Tool] = {}
    for definition in definitions:
        tool = Tool.from_openai(definition)
        if tools.setdefault(tool.name, tool) != tool:
            raise SamplingError(f"Two different tools are called {tool.name!r}: give each its own name.")
    return tuple(tools.values())


def read_choice(choice: Any, tools: Sequence[Tool]) -> tuple[CallPolicy, str | None]:
    """Returns which tools may or must be called.

    Args:
        choice: None or "auto"; "none" or False; "any", "required" or True; the name of a tool; or OpenAI's or
            Anthropic's mapping with a name.
        tools: The tools there are.

    Returns:
        Whether tools may be called, and the name of the only one that may.

    Raises:
        SamplingError: If there is no such tool, or none at all where one must be called.
    """
    by_name = isinstance(choice, Mapping) and ("function" in choice or "name" in choice)
    if isinstance(choice, Mapping):
        choice = _named(choice) if by_name else choice.get("type")
    if not by_name and isinstance(choice, (str, bool, type(None))) and choice in _POLICIES:
        policy = _POLICIES[choice]
        if policy == "must" and not tools:
            raise SamplingError(f"tool_choice is {choice!r}, but there are no tools: bind one, or leave it out.")
        return (policy if tools else "never"), None
    names = [tool.name for tool in tools]
    if choice not in names:
        raise SamplingError(
            f"tool_choice is {shown(choice)}: choose 'auto', 'none', 'any' or the name of a tool "
            f"({', '.join(map(repr, names)) or 'there are none'})."
        )
    return "must", choice


def _named(choice: Mapping[str, Any]) -> Any:
    function = choice.get("function", choice)
    return function.get("name") if isinstance(function, Mapping) else function
