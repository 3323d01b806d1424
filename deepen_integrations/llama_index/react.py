"""What `ReActAgent` and one step of ReAct need of a model that calls tools by writing about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser

_OBSERVATION = "\nObservation:"
"""What follows an action is the tool's result; without this stop string, models make one up."""


def react_stop(stop: Sequence[str]) -> list[str]:
    """Returns the stop strings that also end an answer where a tool's observation would begin."""
    return [*stop] if _OBSERVATION in stop else [*stop, _OBSERVATION]


def react_options(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of `predict_and_call` with defaults that LlamaIndex 0.14.25 needs and does not set."""
    return {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser(), **options}
