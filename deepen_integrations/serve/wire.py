"""What the two kinds of response share: their frame, the numbers of tokens, and how an answer ended."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import TypeAdapter

from deepen_core import __version__
from deepen_integrations.adapter import report

if TYPE_CHECKING:
    from deepen_core.results import Chunk, Generation

_FINGERPRINT = f"deepen-{__version__}"
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_ENDINGS = {"timeout": "length", "cancelled": "length"}
"""Ways to end that OpenAI's protocol does not have, and the one that is nearest: the answer is not complete."""


class Wire(ABC):
    """Writes the answers to one request.

    Args:
        model: The name by which the client asked.
        prompts: Number of prompts; each has the same number of answers, one after the other.
    """

    whole_kind: ClassVar[str]
    piece_kind: ClassVar[str]
    prefix: ClassVar[str]

    def __init__(self, model: str, prompts: int) -> None:
        self._prompts = prompts
        self._frame = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.piece_kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": _FINGERPRINT,
        }

    @abstractmethod
    def opening(self) -> list[dict[str, Any]]:
        """Returns the choices of the events before the first pieces."""

    @abstractmethod
    def choices(self, number: int, chunk: Chunk) -> list[dict[str, Any]]:
        """Returns the choices of the events of a piece of one answer; each event has one.

        Args:
            number: The answer.
            chunk: The piece.
        """

    @abstractmethod
    def whole(self, answers: Sequence[Generation]) -> dict[str, Any]:
        """Returns the response with all answers."""

    def events(self, *, include_usage: bool) -> EventWriter:
        """Returns what writes the events of the pieces.

        Args:
            include_usage: Whether a last event has the numbers of tokens; then all others say that they have none.
        """
        return EventWriter(self._frame, {"usage": None} if include_usage else {})

    def last(self, answers: Sequence[Generation]) -> dict[str, Any]:
        """Returns the event with the numbers of tokens."""
        return {**self._frame, "choices": [], "usage": self.usage(answers)}

    def response(self, choices: Sequence[dict[str, Any]], answers: Sequence[Generation]) -> dict[str, Any]:
        """Returns a whole response."""
        return {**self._frame, "object": self.whole_kind, "choices": [*choices], "usage": self.usage(answers)}

    def usage(self, answers: Sequence[Generation]) -> dict[str, Any]:
        """Returns the numbers of tokens of all answers; a prompt counts once."""
        each = len(answers) // self._prompts
        prompts = sum(answer.usage.prompt_tokens for answer in answers[::each])
        completions = sum(answer.usage.completion_tokens for answer in answers)
        return {
            "prompt_tokens": prompts,
            "completion_tokens": completions,
            "total_tokens": prompts + completions,
        }


class EventWriter:
    """Writes server-sent events that differ only in their choice: all else is encoded once, not for each token.

    Args:
        before: The fields before the choices.
        after: Those after them.
    """

    def __init__(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        frame = encoded({**before, "choices": [], **after})
        self._head = b"data: " + encoded({**before, "choices": []})[: -len(b"]}")]
        self._tail = frame[len(self._head) - len(b"data: ") :] + b"\n\n"

    def event(self, choice: Mapping[str, Any]) -> bytes:
        """Returns the event of a choice."""
        plain = choice["logprobs"] is None and "trace" not in choice
        return self._head + (_encoded_text(choice) if plain else encoded(choice)) + self._tail


def ended(answer: Generation, notes: Sequence[str] = (), *, calls: bool = False) -> dict[str, Any]:
    """Returns how an answer ended: `finish_reason`, and `warnings` if there are any.

    Args:
        answer: The answer.
        notes: Warnings beyond the engine's own.
        calls: Whether it calls tools.
    """
    told = report(answer, notes, calls=calls)
    reason = told["finish_reason"]
    warnings = told.get("warnings", [])
    if reason in _ENDINGS:
        warnings = [*warnings, f"The answer is not complete: it ended by {reason}."]
    found = {"finish_reason": _ENDINGS.get(reason, reason)}
    return {**found, "warnings": warnings} if warnings else found


def traced(answer: Generation) -> dict[str, Any]:
    """Returns the trace of an answer, if it was asked for."""
    return {} if answer.trace is None else {"trace": answer.trace.to_dict()}


def encoded(value: Any) -> bytes:
    """Returns a value as JSON in UTF-8; half a character, which UTF-8 cannot hold, becomes an escape."""
    return _JSON.encode(value).encode("utf-8", "backslashreplace")


def _encoded_text(value: Mapping[str, Any]) -> bytes:
    """Returns as `encoded`, in a fifth of the time, what has no numbers that may be infinite."""
    try:
        return _ANY.dump_json(value)
    except ValueError:  # half a character
        return encoded(value)
