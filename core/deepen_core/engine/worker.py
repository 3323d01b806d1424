"""The worker: one thread that owns the models and steps the batch as long as there is anything to do."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

from deepen_core.engine.decoder import Decoder
from deepen_core.engine.failures import OUR_FAULT
from deepen_core.engine.handle import Handle, Request
from deepen_core.engine.scheduler import Scheduler
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.errors import ClosedError, brief

T = TypeVar("T")

_TASKS_S = 0.01  # while sequences decode, tasks take so many seconds between two steps


class _Task(Generic[T]):
    """Work that is done between steps."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.done: Future[T] = Future()
        self._work = work

    def run(self) -> None:
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self.done.set_result(self._work())
        except BaseException as problem:  # noqa: BLE001 (told to whoever waits)
            self.done.set_exception(problem)

    def fail(self, error: ClosedError) -> None:
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


class _Stop:
    """Ends the worker."""


class Worker:
    """Takes requests from any thread and any event loop, and decodes them together on one thread.

    The thread starts with the first request and ends with `stop`. It sleeps while there is nothing to do. Whatever
    reaches it goes through one queue that may be filled anywhere, destructors included; all else is its own, so that
    nobody ever waits for a lock that is held during a step.

    Args:
        decoder: Steps the sequences.
        max_batch_size: So many sequences are decoded together at most.
    """

    def __init__(self, decoder: Decoder, max_batch_size: int) -> None:
        self._scheduler: Scheduler | None = Scheduler(decoder, max_batch_size)
        self._inbox: queue.SimpleQueue[Request | _Task[Any] | _Stop] = queue.SimpleQueue()
        # Re-entrant, as a destructor may come to `stop` in the middle of `_start`.
        self._starting = threading.RLock()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False
        self._broken = ""

    def submit(self, sequences: Sequence[EnsembleSequence], owner: object, asked: float | None = None) -> list[Handle]:
        """Puts sequences into the queue, next to each other.

        Args:
            sequences: The sequences, from now on the worker's.
            owner: Kept alive by the handles.
            asked: When the caller asked (`time.perf_counter`), if not now; timeouts count from there.

        Raises:
            ClosedError: After `stop`, and in a fork of the process that has already decoded.
        """
        requests = [Request(sequence) for sequence in sequences]
        asked = time.perf_counter() if asked is None else asked
        self._start()
        for request in requests:
            request.sequence.submitted = asked
            self._inbox.put(request)
        self._check_open()  # if the worker was stopped meanwhile, it may not have seen these
        return [Handle(request, owner) for request in requests]

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Has something done by the worker between two steps; may wait on the result, from any other thread.

        Raises:
            ClosedError: As from `submit`.
        """
        task = _Task(work)
        self._start()
        self._inbox.put(task)
        self._check_open()
        return task.done

    def stop(self, *, wait: bool = True) -> None:
        """Ends the worker at its next step, and every request with `ClosedError`.

        Args:
            wait: Until the thread has ended.
        """
        self._closed = True
        if self._process != os.getpid():
            self._scheduler = None  # the worker did not come along into this fork
            return
        with self._starting:
            worker = self._thread
        if worker is None:
            self._scheduler = None
            return
        self._inbox.put(_Stop())
        if wait and worker is not threading.current_thread():
            worker.join()

    def _start(self) -> None:
        self._check_open()
        with self._starting:
            if self._thread is None and not self._closed:
                worker = threading.Thread(target=self._work, name="deepen-worker", daemon=True)
                worker.start()
                self._thread, self._process = worker, os.getpid()
                # A daemon still in torch while the interpreter goes down may crash it: at exit it is waited for.
                weakref.finalize(worker, _stop_if_alive, weakref.ref(self))

    def _check_open(self) -> None:
        if self._thread is not None and self._process != os.getpid():
            raise ClosedError(
                f"This ensemble has decoded in process {self._process}, of which this one ({os.getpid()}) is a fork: "
                "its worker did not come along. Load it in this process, or fork before its first request."
            )
        if self._closed:
            raise closed_error(self._broken)

    def _work(self) -> None:
        try:
            while self._receive():
                assert self._scheduler is not None, "only this thread lets go of it"
                self._scheduler.step()
        except BaseException as problem:
            self._broken = brief(problem)
            raise
        finally:
            self._closed = True
            self._abandon()

    def _receive(self) -> bool:
        """Takes what has come in, and waits for it while there is nothing to step; False once it is time to end."""
        assert self._scheduler is not None, "only this thread lets go of it"
        started = time.perf_counter()
        while True:
            try:
                item = self._inbox.get(block=self._scheduler.idle)
            except queue.Empty:
                return True
            if isinstance(item, _Stop):
                return False
            if isinstance(item, Request):
                self._scheduler.add(item)
            else:
                item.run()
                if not self._scheduler.idle and time.perf_counter() - started > _TASKS_S:
                    return True
            del item  # while the worker sleeps it holds nothing of anybody's

    def _abandon(self) -> None:
        if self._scheduler is not None:
            self._scheduler.abandon(partial(closed_error, self._broken))
            self._scheduler = None
        while not self._inbox.empty():
            item = self._inbox.get()
            if not isinstance(item, _Stop):
                item.fail(closed_error(self._broken))


def closed_error(broken: str = "") -> ClosedError:
    """The error of whoever comes after the end.

    Args:
        broken: What ended the worker, if it was not `Ensemble.close`.
    """
    if broken:
        return ClosedError(f"This ensemble has broken down: {broken}. {OUR_FAULT} To go on, load it again.")
    return ClosedError("This ensemble was closed and its models released: load it again.")


def _stop_if_alive(reference: weakref.ref[Worker]) -> None:
    worker = reference()
    if worker is not None:
        worker.stop()
