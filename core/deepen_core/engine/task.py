"""A piece of work that a thread runs for others, and threads that run such work and that nothing has to wait for."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Task(Generic[T]):
    """Work that another thread runs.

    Attributes:
        done: Its result.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self.done: Future[T] = Future()
        self._work = work

    def run(self) -> None:
        """Runs it, unless it was cancelled."""
        if not self.done.set_running_or_notify_cancel():
            return
        with suppress(InvalidStateError):  # it was given up meanwhile
            try:
                self.done.set_result(self._work())
            except BaseException as problem:  # noqa: BLE001 (raised again where the result is awaited)
                self.done.set_exception(problem)

    def fail(self, error: Exception) -> None:
        """Ends it with an error for those who wait, unless it has ended; if it runs, its result is lost."""
        with suppress(InvalidStateError):
            if not self.done.done() and (self.done.running() or self.done.set_running_or_notify_cancel()):
                self.done.set_exception(error)


class Lane:
    """Threads that run work in its order.

    They start when they are first needed, and end when this is closed or dropped. Unlike those of `ThreadPoolExecutor`
    they are daemons: work that never ends does not keep the interpreter from its exit.

    Args:
        threads: Maximum number of threads.
        name: Of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._most = threads
        self._name = name
        self._waiting: queue.SimpleQueue[Task[Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._changing = threading.RLock()  # a destructor may close it in the middle of `run`
        self._closed = False
        self._end = weakref.finalize(self, _end, self._waiting, threads)
        self._end.atexit = False

    @property
    def waiting(self) -> int:
        """Number of pieces of work that no thread has begun, about."""
        return self._waiting.qsize()

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Runs some work.

        Raises:
            RuntimeError: After `close`.
        """
        task = Task(work)
        with self._changing:
            if self._closed:
                raise RuntimeError("this lane was closed")
            self._waiting.put(task)
            if len(self._threads) < self._most:
                thread = threading.Thread(target=_work, args=(self._waiting,), name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return task.done

    def close(self, wait_s: float) -> None:
        """Ends the threads after what they have been given; nothing is accepted any more.

        Args:
            wait_s: Maximum number of seconds to wait for them.
        """
        with self._changing:
            self._closed = True
        self._end()
        until = time.monotonic() + wait_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))


def _work(waiting: queue.SimpleQueue[Task[Any] | None]) -> None:
    while (task := waiting.get()) is not None:
        task.run()
        del task  # while the thread sleeps, it must not keep callers' objects alive


def _end(waiting: queue.SimpleQueue[Task[Any] | None], threads: int) -> None:
    for _ in range(threads):
        waiting.put(None)
