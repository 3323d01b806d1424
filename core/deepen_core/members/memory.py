"""Memory: what is freed goes back to the system; how to recognise that there is none left, and what helps."""

from __future__ import annotations

import ctypes
import sys
import time

import torch

MORE_ROOM = "Lower max_batch_size, or shorten the prompt."
"""Advice for when memory runs out."""

_OUT_OF_MEMORY = ("allocate memory", "out of memory", "alloc_failed")


def return_freed() -> None:
    """Returns freed memory to the system, where the C library keeps it for the thread that had it.

    Only glibc does so. Elsewhere nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class FreedMemory:
    """Returns freed memory to the system from time to time.

    Each step makes and frees tensors as large as the vocabulary. The C library keeps freed memory between those that
    are still in use: 110 MiB after a batch of eight on GGUF files.
    """

    _EVERY_S = 1.0
    _SHARE = 0.005  # of the time, at most

    def __init__(self) -> None:
        self._next = time.monotonic() + self._EVERY_S

    def after_step(self) -> None:
        """Returns what is free if it is time to."""
        if time.monotonic() >= self._next:
            self.give_back()

    def give_back(self) -> None:
        """Returns what is free."""
        started = time.monotonic()
        return_freed()
        ended = time.monotonic()
        self._next = ended + max(self._EVERY_S, (ended - started) / self._SHARE)


def is_memory(problem: BaseException) -> bool:
    """Whether an error means that memory ran out; libraries word it differently."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(problem).lower() if isinstance(problem, (OSError, RuntimeError)) else ""
    return any(words in said for words in _OUT_OF_MEMORY)


def more_room(dtype: torch.dtype) -> str:
    """Returns advice for a member that does not fit on its device."""
    return "Use another device" + (", or a smaller dtype such as 'bfloat16'" if dtype.itemsize > 2 else "")
