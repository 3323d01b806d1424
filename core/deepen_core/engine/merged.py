"""The output of several requests, read by one task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import reduce

from typing_extensions import Self

from deepen_core.engine.output_queue import OutputQueue, joined, sleep_until_news
from deepen_core.errors import DeepenError
from deepen_core.results import Chunk


class MergedOutput:
    """The pieces of several answers as they come.

    An asynchronous iterator over what is there, such as the output of one decoding step: one piece of each answer that
    has any, with the number of the answer. It raises the error that ends one of them, after all pieces before it.

    Args:
        outputs: Those of the answers.
        interval_s: Is called each time that pieces are taken. Pieces that come within the seconds that it returns are
            held until the first piece after that, or the end of an answer. Where steps are short, readers are woken
            less often. Nothing is held if None.
    """

    def __init__(self, outputs: Sequence[OutputQueue], interval_s: Callable[[], float] | None = None) -> None:
        self._queues = dict(enumerate(outputs))
        self._interval_s = interval_s
        self._due = 0.0  # by `time.perf_counter`
        self._failure: DeepenError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[tuple[int, Chunk]]:
        while self._failure is None and self._queues:
            await sleep_until_news(self._queues.values(), self._due)
            if step := self._take():
                if self._interval_s is not None:
                    self._due = time.perf_counter() + self._interval_s()
                return step
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    def _take(self) -> list[tuple[int, Chunk]]:
        step: list[tuple[int, Chunk]] = []
        for number, queue in [*self._queues.items()]:
            try:
                if chunks := queue.take_all():
                    step.append((number, reduce(joined, chunks)))
            except DeepenError as error:
                self._failure = error
            if queue.emptied():
                del self._queues[number]
        return step
