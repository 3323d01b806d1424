"""The output of a request that was not taken yet: one worker puts, threads and event loops take."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial

from typing_extensions import Self

from deepen_core.engine.event_loop import running_loop
from deepen_core.errors import ClosedError, DeepenError
from deepen_core.results import Chunk, Generation

_LONGEST = 32  # for a slow reader, everything after this many pieces is joined into one


class Wakeups:
    """Tasks whose conditions hold, woken together by one call to each event loop.

    Such a call is a system call, after which the threads compete for the interpreter: one for each token of each answer
    would take longer than what the loop does with them. Used as a context manager, it wakes the tasks at the end.
    """

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[OutputQueue, asyncio.Future[None]]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ring()

    def add(self, output: OutputQueue, sleeper: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
        """Adds a task that waits for some output."""
        self._waiting.setdefault(loop, []).append((output, sleeper))

    def ring(self) -> None:
        """Wakes all tasks that were added."""
        for loop, waiting in self._waiting.items():
            try:
                loop.call_soon_threadsafe(_wake, [sleeper for _, sleeper in waiting])
            except RuntimeError:  # the loop was closed meanwhile
                for output, _ in waiting:
                    output.abandoned = True
        self._waiting.clear()


class OutputQueue:
    """The pieces of one answer that were not taken yet, and its end.

    Putting never waits for readers. Only a lock is shared between calls, so readers may come from any thread and any
    event loop; a loop is referenced only while a task waits in it.

    Attributes:
        abandoned: Whether an event loop was closed while a task waited in it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant, as a task that is garbage-collected may end its `sleep` anywhere
        self._changed = threading.Condition(self._lock)
        self._sleepers: dict[asyncio.Future[None], tuple[asyncio.AbstractEventLoop, Callable[[], bool]]] = {}
        self._chunks: deque[Chunk] = deque()
        self._answer: Generation | None = None
        self._error: DeepenError | None = None
        self._process = os.getpid()
        self.abandoned = False

    def put(self, chunk: Chunk, wakeups: Wakeups) -> None:
        """Adds a piece; the last one carries the whole answer.

        Args:
            chunk: The piece.
            wakeups: Wakes the tasks that wait for it.
        """
        with self._lock:
            if len(self._chunks) >= _LONGEST:
                chunk = joined(self._chunks.pop(), chunk)
            self._chunks.append(chunk)
            self._answer = chunk.generation
            self._notify(wakeups)

    def fail(self, error: DeepenError) -> None:
        """Ends the answer with an error, unless it has ended already."""
        with Wakeups() as wakeups, self._lock:
            if not self.ended():
                self._error = error
                self._notify(wakeups)

    def ended(self) -> bool:
        """Whether no more will be put."""
        return self._answer is not None or self._error is not None

    def has_news(self) -> bool:
        """Whether `take` would return a piece or raise, or no more will come."""
        return bool(self._chunks) or self.ended()

    def emptied(self) -> bool:
        """Whether the answer is complete and every piece of it was taken."""
        return self._answer is not None and not self._chunks

    def take(self) -> Chunk | None:
        """Returns the next piece, or None if there is none now.

        Raises:
            DeepenError: The error that ended the answer, once all pieces before it were taken.
        """
        with self._lock:
            if self._chunks:
                return self._chunks.popleft()
            if self._error is not None:
                raise self._error
            return None

    def take_all(self) -> list[Chunk]:
        """Returns all pieces that are there; raises as `take`."""
        with self._lock:
            if not self._chunks and self._error is not None:
                raise self._error
            taken = [*self._chunks]
            self._chunks.clear()
            return taken

    def answer(self) -> Generation:
        """Returns the whole answer, which must have ended.

        Raises:
            DeepenError: The error that ended it.
        """
        if self._error is not None:
            raise self._error
        assert self._answer is not None, "the request has not ended"
        return self._answer

    def wait(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        """Blocks the thread until a condition of this queue holds.

        Returns:
            Whether it held in time.
        """
        self.check_process()
        with self._lock:
            return self._changed.wait_for(until, timeout)

    async def sleep(self, until: Callable[[], bool]) -> None:
        """Suspends the task until a condition of this queue has held; another reader may have been faster since."""
        await _sleep([(self, until)])

    def hold(self, until: Callable[[], bool], sleeper: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> bool:
        """Returns whether a condition holds; if not, its sleeper will be woken once it does."""
        with self._lock:
            if until():
                return True
            self._sleepers[sleeper] = loop, until
            return False

    def drop(self, sleeper: asyncio.Future[None]) -> None:
        """Forgets a sleeper that nobody has woken."""
        if sleeper in self._sleepers:
            with self._lock:
                self._sleepers.pop(sleeper, None)

    def _notify(self, wakeups: Wakeups) -> None:
        self._changed.notify_all()
        for sleeper, (loop, until) in [*self._sleepers.items()]:
            if loop.is_closed():  # its tasks will never run again
                self.abandoned = True
            elif until():
                wakeups.add(self, sleeper, loop)
            else:
                continue
            self._sleepers.pop(sleeper, None)

    def check_process(self) -> None:
        """Raises `ClosedError` in a fork of the process that made the request."""
        if self._process != os.getpid():
            raise ClosedError(
                f"This request was made in process {self._process}, of which this one ({os.getpid()}) is a fork: its "
                "answer arrives only there. Load the ensemble in this process and ask again."
            )


async def sleep_until_news(queues: Collection[OutputQueue], due: float = 0.0) -> None:
    """Suspends the task until any of several queues has had news.

    Args:
        queues: The queues.
        due: A time (`time.perf_counter`). Pieces put before it are news once another one is put after it, or the answer
            has ended.
    """

    def news(queue: OutputQueue) -> bool:
        return queue.ended() or (queue.has_news() and time.perf_counter() >= due)

    if not any(map(news, queues)):
        await _sleep([(queue, partial(news, queue)) for queue in queues])


async def _sleep(conditions: Sequence[tuple[OutputQueue, Callable[[], bool]]]) -> None:
    """Suspends the task until any of some queues' conditions has held."""
    loop = running_loop()
    sleeper = loop.create_future()
    try:
        for queue, until in conditions:
            queue.check_process()
            if queue.hold(until, sleeper, loop):
                return
        await sleeper
    finally:
        for queue, _ in conditions:
            queue.drop(sleeper)


def _wake(sleepers: Sequence[asyncio.Future[None]]) -> None:
    for sleeper in sleepers:
        if not sleeper.done():
            sleeper.set_result(None)


def joined(first: Chunk, second: Chunk) -> Chunk:
    """Returns two pieces of one answer, which follow each other, as one."""
    logprobs = None if second.logprobs is None else [*(first.logprobs or ()), *second.logprobs]
    ids = first.token_ids + second.token_ids
    trace = first.trace + second.trace if first.trace and second.trace else second.trace
    return Chunk(first.text + second.text, ids, second.finish_reason, second.generation, logprobs, trace)
