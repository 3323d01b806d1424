"""Runs work that recurses outside of Python on a thread with a large stack, whatever the caller's thread has."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

STACK_BYTES = 256 * 2**20
"""Schemas and grammars beyond the limits of `limits` were compiled in it. Only what is touched takes memory."""

_starting = threading.Lock()  # the size of stacks is one setting of the whole process
_here = threading.local()


def on_big_stack(work: Callable[[], T]) -> T:
    """Returns the result of some work, which is run on a thread with a large stack while the caller waits.

    On such a thread itself the work is run at once. Starting one takes about 100 µs.

    Args:
        work: What it raises is raised here.
    """
    if is_big():
        return work()
    done: Future[T] = Future()

    def run() -> None:
        _here.is_big = True
        try:
            done.set_result(work())
        except BaseException as problem:  # noqa: BLE001 (raised again in the caller's thread)
            done.set_exception(problem)

    _start(threading.Thread(target=run, name="deepen-compiler", daemon=True))
    return done.result()


def is_big() -> bool:
    """Whether this thread has a large stack."""
    return getattr(_here, "is_big", False)


def _start(thread: threading.Thread) -> None:
    with _starting:
        usual = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
