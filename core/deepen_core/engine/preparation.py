"""Prepares requests of event loops (templates, tokens, grammars) beside the thread that decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

from deepen_core.chat.messages import Message
from deepen_core.config import SamplingParams
from deepen_core.engine.task import Lane

T = TypeVar("T")

_SHORT = 20_000  # characters, which take about ten milliseconds
_LONG_THREADS = 4


class Preparation:
    """A small pool of threads with two lanes, so that no short request waits for a long one.

    Short requests keep their order. Threads start when they are first needed, and end when this is dropped.
    """

    def __init__(self) -> None:
        self._short = Lane(1, "deepen-prepare")
        self._long = Lane(_LONG_THREADS, "deepen-prepare-long")

    @property
    def waiting(self) -> int:
        """Number of requests that wait to be prepared, about."""
        return self._short.waiting + self._long.waiting

    def run(self, work: Callable[[], T], *, short: bool) -> Future[T]:
        """Runs some work on a thread of its lane.

        Args:
            work: The work.
            short: Whether it takes a few milliseconds at most.

        Raises:
            RuntimeError: After `close`.
        """
        return (self._short if short else self._long).run(work)

    def close(self, wait_s: float) -> None:
        """Ends the threads after what they have been given; none is accepted any more.

        Args:
            wait_s: Maximum number of seconds to wait for the thread of short requests.
        """
        self._long.close(0.0)
        self._short.close(wait_s)


def is_short(prompt: str | Sequence[Message], params: SamplingParams) -> bool:
    """Whether a request is prepared in a few milliseconds: it has no grammar, and little text."""
    if params.constraint is not None:
        return False
    return _characters(prompt, _SHORT) < _SHORT


def _characters(value: object, enough: int) -> int:
    """Returns the length of all texts in a prompt, at least one each, or any number from `enough` on."""
    if isinstance(value, str):
        return max(1, len(value))
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return 1
    count = len(value)
    for part in value:
        if count >= enough:
            break
        count += _characters(part, enough - count)
    return count
