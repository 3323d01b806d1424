"""Prepares requests of event loops (templates, tokens, grammars) beside the thread that decodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from deepen_core.chat.messages import Message
from deepen_core.config import SamplingParams
from deepen_core.engine.task import Lane
from deepen_core.process_setting import ProcessSetting

T = TypeVar("T")

_SHORT = 20_000  # characters, which take about ten milliseconds
_LONG_THREADS = 4
_TURN_S = 0.0002


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
        return self._short.run(work) if short else self._long.run(partial(_with_quick_turns, work))

    def close(self, wait_s: float) -> None:
        """Ends the threads after what they have been given; none is accepted any more.

        Args:
            wait_s: Maximum number of seconds to wait for the thread of short requests.
        """
        self._long.close(0.0)
        self._short.close(wait_s)


def _with_quick_turns(work: Callable[[], T]) -> T:
    """Runs some work while threads of this process wait less for their turn.

    The thread that decodes gives up the interpreter's lock in every operation of torch, hundreds a step, and then waits
    for a thread that computes in Python for as long as the interval, usually 5 ms.
    """
    with _turns:
        return work()


class _QuickTurns(ProcessSetting):
    """Shortens the interval while any thread is inside."""

    _usual_s = 0.0

    def _change(self) -> None:
        self._usual_s = sys.getswitchinterval()
        sys.setswitchinterval(min(self._usual_s, _TURN_S))

    def _restore(self) -> None:
        sys.setswitchinterval(self._usual_s)


_turns = _QuickTurns()  # the interval is a setting of the process


def is_short(prompt: str | Sequence[Message], params: SamplingParams) -> bool:
    """Whether a request is prepared in a few milliseconds: it has no grammar, little text and few stop strings."""
    if params.constraint is not None:
        return False
    return characters(prompt, _SHORT) + characters(params.stop, _SHORT) < _SHORT


def characters(value: object, enough: int) -> int:
    """Returns the length of all texts in lists and mappings, at least one each, or any number from `enough` on."""
    if isinstance(value, str):
        return max(1, len(value))
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if not isinstance(value, (list, tuple)):
        return 1
    count = len(value)
    for part in value:
        if count >= enough:
            break
        count += characters(part, enough - count)
    return count
