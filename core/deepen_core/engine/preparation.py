"""Prepares requests of event loops (templates, tokens, grammars) beside the thread that decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from deepen_core.chat.messages import Message
from deepen_core.config import SamplingParams

T = TypeVar("T")

_SHORT = 20_000  # characters, which take about ten milliseconds
_LONG_THREADS = 4


class Preparation:
    """A small pool of threads with two lanes, so that no short request waits for a long one.

    Short requests keep their order. Threads start when they are first needed, and end when this is dropped.
    """

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(1, thread_name_prefix="deepen-prepare")
        self._long = ThreadPoolExecutor(_LONG_THREADS, thread_name_prefix="deepen-prepare-long")

    def run(self, work: Callable[[], T], *, short: bool) -> Future[T]:
        """Runs some work on a thread of its lane.

        Args:
            work: The work.
            short: Whether it takes a few milliseconds at most.

        Raises:
            RuntimeError: After `close`.
        """
        return (self._short if short else self._long).submit(work)

    def close(self, *, wait: bool) -> None:
        """Ends the threads after what they have been given; none is accepted any more.

        Args:
            wait: Wait for the thread of short requests.
        """
        self._short.shutdown(wait=wait)
        self._long.shutdown(wait=False)


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
