"""What `ReActAgent` and one step of ReAct need of a model that calls tools by writing about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.tools import BaseTool

from deepen_core.config import SamplingParams
from deepen_core.replies import Tool, react_rules

_OBSERVATION = "\nObservation:"
"""What follows an action is the tool's result; without this stop string, models make one up."""


def react_stop(stop: Sequence[str]) -> list[str]:
    """Returns the stop strings that also end an answer where a tool's observation would begin."""
    return [*stop] if _OBSERVATION in stop else [*stop, _OBSERVATION]


def react_constraint(
    tools: Sequence[BaseTool], can_handoff_to: Sequence[str], sampling: SamplingParams
) -> dict[str, str]:
    """Returns the constraint that holds an answer to a step of ReAct, as an option of a call.

    There is none if the caller has constrained answers already, or without tools to choose from.

    Args:
        tools: The tools that the agent may use.
        can_handoff_to: Names of the agents that it may hand off to.
        sampling: The model's options.

    Raises:
        SamplingError: If decoding cannot follow a tool's schema, or if a name holds a blank or a bracket.
    """
    if sampling.constraint is not None or not (tools or can_handoff_to):
        return {}
    known = [_named(tool) for tool in tools]
    if can_handoff_to:
        reason = {"to_agent": {"enum": [*can_handoff_to]}, "reason": {"type": "string"}}
        known.append(Tool("handoff", parameters={"properties": reason, "required": [*reason]}))
    held = SamplingParams(grammar=react_rules(known, sampling))
    from deepen_core.constraints.grammar import grammar_of  # noqa: PLC0415  needs an extra

    grammar_of(held)
    return held.model_dump(exclude_unset=True)


def _named(tool: BaseTool) -> Tool:
    """Returns a tool under its own name, which agents look for; in OpenAI's form LlamaIndex replaces blanks."""
    read = Tool.from_openai(tool.metadata.to_openai_tool(skip_length_check=True))
    return replace(read, name=tool.metadata.get_name())


def react_options(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of `predict_and_call` with defaults that LlamaIndex 0.14.25 needs and does not set."""
    return {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser(), **options}
