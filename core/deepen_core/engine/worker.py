"""The worker: one thread that runs the models and steps the batch while there is anything to do."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from deepen_core.engine.decoder import Decoder
from deepen_core.engine.failures import OUR_FAULT, forget_frames
from deepen_core.engine.handle import Handle, Request
from deepen_core.engine.preparation import Preparation
from deepen_core.engine.scheduler import Scheduler
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.engine.task import Task
from deepen_core.errors import ClosedError, CrashedError, QueueFullError, brief
from deepen_core.members.memory import FreedMemory

T = TypeVar("T")

_log = logging.getLogger("deepen_core")
_CRASHES, _CRASHES_WITHIN_S = 3, 60.0  # after more crashes within this many seconds it ends for good
CLOSE_S = 10.0
"""Seconds that `stop` waits for a step under way. A member that hangs cannot be interrupted: it is left behind."""
_IDLE_S = 1.0  # after so long without work, freed memory goes back to the system
_TASKS_S = 0.01  # while sequences decode, tasks take at most about this many seconds between two steps


class _Stop:
    """Ends the worker."""


class Worker:
    """Takes requests from any thread and any event loop, and decodes them together on one thread.

    The thread starts with the first request, ends with `stop`, and sleeps while there is nothing to do. Everything
    reaches it through one queue that may be filled from anywhere, destructors included. All other state is private to
    the thread, so no caller ever waits for a lock that is held during a step.

    After a crash (an exception outside of any request, or one that is not an `Exception`) the requests under way end
    with its cause, the members forget what they have computed, and the next requests are decoded as before; after four
    crashes within a minute, none are. Weights are read only, so they are not loaded again.

    Args:
        decoder: Steps the sequences.
        max_batch_size: Maximum number of sequences decoded together.
        max_waiting: Maximum number of sequences beyond these before a call is refused; None for no limit.
    """

    def __init__(self, decoder: Decoder, max_batch_size: int, max_waiting: int | None = None) -> None:
        self._scheduler: Scheduler | None = Scheduler(decoder, max_batch_size)
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._inbox: queue.SimpleQueue[Request | Task[Any] | _Stop] = queue.SimpleQueue()
        # Re-entrant, as a destructor may call `stop` in the middle of `_start`.
        self._starting = threading.RLock()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False
        self._broken: BaseException | None = None
        self._crashes: list[float] = []
        self._freed = FreedMemory()
        self._preparation = Preparation()
        self._task: Task[Any] | None = None  # that runs now

    def check_room(self) -> None:
        """Checks that a call may be made; what one call asks for, such as a list of prompts, is taken on as a whole.

        Raises:
            QueueFullError: If more requests wait already than may.
        """
        scheduler, most = self._scheduler, self._max_waiting
        if scheduler is None or most is None:
            return
        there = self._inbox.qsize() + scheduler.count + self._preparation.waiting
        if there >= self._max_batch_size + most:
            raise QueueFullError(
                f"{there} requests are decoded or wait, and at most {self._max_batch_size} (max_batch_size) and {most} "
                "(max_waiting) may: ask again later, or load with a larger max_waiting."
            )

    def submit(
        self,
        sequences: Sequence[EnsembleSequence],
        owner: object,
        decoder: Decoder | None = None,
        asked: float | None = None,
    ) -> list[Handle]:
        """Puts sequences into the queue, one after the other without gaps.

        Args:
            sequences: The sequences, which belong to the worker from now on.
            owner: Kept alive by the handles.
            decoder: Steps them, if not the worker's own; it has the same members.
            asked: When the caller made the request (`time.perf_counter`), if not now; timeouts count from there.

        Raises:
            ClosedError: After `stop`, and in a fork of a process that has already decoded.
        """
        requests = [Request(sequence, decoder) for sequence in sequences]
        asked = time.perf_counter() if asked is None else asked
        self._start()
        handles = [Handle(request, owner) for request in requests]
        try:
            for request in requests:
                request.sequence.submitted = request.sequence.params.asked or asked
                self._inbox.put(request)
            self._check_open()  # if the worker was stopped meanwhile, it may not have seen these
        except BaseException:  # such as Ctrl-C: the traceback may keep the handles for long
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Runs a function on the worker between two steps; any other thread may wait for the result.

        Raises:
            ClosedError: As from `submit`.
        """
        task = Task(work)
        self._start()
        self._inbox.put(task)
        self._check_open()
        return task.done

    def prepare(self, work: Callable[[], T], *, short: bool) -> Future[T]:
        """Runs a function beside the worker, see `Preparation.run`.

        Raises:
            ClosedError: As from `submit`.
        """
        self._start()  # so that a fork is noticed
        try:
            return self._preparation.run(work, short=short)
        except RuntimeError:  # stopped meanwhile
            raise self._ended_error() from None

    def stop(self, *, wait: bool = True) -> None:
        """Ends the worker at its next step, and every request with `ClosedError`.

        Args:
            wait: Wait until the thread has ended, for at most `CLOSE_S`. If a step takes longer, as one in which a
                member hangs, the thread is left behind: it ends after the step.
        """
        self._closed = True
        if self._process != os.getpid():
            self._scheduler = None  # the worker thread does not exist in this fork
            return
        until = time.monotonic() + (CLOSE_S if wait else 0.0)
        self._preparation.close(CLOSE_S if wait else 0.0)
        with self._starting:
            worker = self._thread
        if worker is None:
            self._scheduler = None
            return
        self._inbox.put(_Stop())
        if wait and worker is not threading.current_thread():
            worker.join(max(0.0, until - time.monotonic()))
            if worker.is_alive():
                self._leave_behind()

    def _leave_behind(self) -> None:
        """Ends everything that waits for a step which does not end. What the step uses is left to it."""
        _log.warning(
            "The worker of an ensemble is still in a step %g s after it was closed, and is left behind: a member "
            "hangs, and holds its memory. With step_timeout, requests would go on without it.",
            CLOSE_S,
        )
        scheduler, task = self._scheduler, self._task
        for request in () if scheduler is None else scheduler.requests:
            request.mail.fail(self._ended_error())
        if task is not None:
            task.fail(self._ended_error())
        self._empty_inbox()
        self._inbox.put(_Stop())

    def _start(self) -> None:
        self._check_open()
        with self._starting:
            if self._thread is None and not self._closed:
                worker = threading.Thread(target=self._work, name="deepen-worker", daemon=True)
                self._thread, self._process = worker, os.getpid()  # first: Ctrl-C must not make a second one
                try:
                    worker.start()
                except RuntimeError:  # no thread can be started
                    self._thread = None
                    raise
                # A daemon thread still in torch at interpreter shutdown may crash: it is waited for at exit.
                weakref.finalize(worker, _stop_if_alive, weakref.ref(self))

    def _check_open(self) -> None:
        if self._thread is not None and self._process != os.getpid():
            raise ClosedError(
                f"This ensemble has decoded in process {self._process}, of which this one ({os.getpid()}) is a fork: "
                "its worker thread exists only there. Load it in this process, or fork before its first request."
            )
        if self._closed:
            raise self._ended_error()

    def _work(self) -> None:
        try:
            while self._works_on():
                pass
        finally:
            self._closed = True
            self._abandon()

    def _works_on(self) -> bool:
        """Receives and steps once; after a crash, begins anew without the requests that were under way."""
        assert self._scheduler is not None, "only this thread sets it to None"
        try:
            if not self._receive():
                return False
            self._scheduler.step()
            self._freed.after_step()
        except BaseException as problem:  # noqa: BLE001 (every request that is lost reports it)
            return self._crash(problem)
        return True

    def _crash(self, problem: BaseException) -> bool:
        """Ends the requests under way; returns whether the worker goes on, which it does a few times a minute."""
        assert self._scheduler is not None, "only this thread sets it to None"
        _log.error("The worker of an ensemble crashed.", exc_info=problem)
        now = time.monotonic()
        self._crashes = [*(then for then in self._crashes if now - then < _CRASHES_WITHIN_S), now]
        goes_on = len(self._crashes) <= _CRASHES
        if not goes_on:
            self._broken, self._closed = problem, True
        self._scheduler.abandon(partial(crashed_error, problem, for_good=not goes_on))
        self._scheduler = self._scheduler.anew()
        forget_frames(problem)
        return goes_on

    def _receive(self) -> bool:
        """Handles incoming items, and waits for one while there is nothing to step; returns False when it must end."""
        assert self._scheduler is not None, "only this thread sets it to None"
        started = time.perf_counter()
        while True:
            try:
                item = self._next_item(idle=self._scheduler.idle)
            except queue.Empty:
                return True
            if isinstance(item, _Stop):
                return False
            if isinstance(item, Request):
                self._scheduler.add(item)
            else:
                self._task = item
                item.run()
                self._task = None
                if not self._scheduler.idle and time.perf_counter() - started > _TASKS_S:
                    return True
            del item  # while the worker sleeps, it must not keep callers' objects alive

    def _next_item(self, *, idle: bool) -> Request | Task[Any] | _Stop:
        """Returns the next incoming item; waits for it if idle. After a while without any, freed memory is returned.

        Raises:
            queue.Empty: If there is none, and there are sequences to step.
        """
        if not idle:
            return self._inbox.get_nowait()
        try:
            return self._inbox.get(timeout=_IDLE_S)
        except queue.Empty:
            self._freed.give_back()
            return self._inbox.get()

    def _abandon(self) -> None:
        if self._scheduler is not None:
            self._scheduler.abandon(self._ended_error)
            self._scheduler = None
        self._empty_inbox()

    def _empty_inbox(self) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            if not isinstance(item, _Stop):
                item.fail(self._ended_error())

    def _ended_error(self) -> ClosedError:
        """Returns a new error for calls after the end."""
        return closed_error() if self._broken is None else crashed_error(self._broken, for_good=True)


def closed_error() -> ClosedError:
    """Returns the error for calls after `Ensemble.close`."""
    return ClosedError("This ensemble was closed and its models released: load it again.")


def crashed_error(problem: BaseException, *, for_good: bool) -> CrashedError:
    """Returns the error of a request that a crash ended.

    Args:
        problem: What ended the worker.
        for_good: Whether it was one crash too many.
    """
    way_out = (
        f"It was the crash number {_CRASHES + 1} within a minute: load it again to continue."
        if for_good
        else "Ask again: the next request starts anew."
    )
    error = CrashedError(f"This ensemble has crashed: {brief(problem)}. {OUR_FAULT} {way_out}")
    error.__cause__, error.for_good = problem, for_good
    return error


def _stop_if_alive(reference: weakref.ref[Worker]) -> None:
    worker = reference()
    if worker is not None:
        worker.stop()
