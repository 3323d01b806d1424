"""Memory: what is freed goes back to the system; how to recognise that there is none left, and what helps."""

from __future__ import annotations

import ctypes
import sys

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


def is_memory(problem: BaseException) -> bool:
    """Whether an error means that memory ran out; libraries word it differently."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(problem).lower() if isinstance(problem, (OSError, RuntimeError)) else ""
    return any(words in said for words in _OUT_OF_MEMORY)


def more_room(dtype: torch.dtype) -> str:
    """Returns advice for a member that does not fit on its device."""
    return "Use another device" + (", or a smaller dtype such as 'bfloat16'" if dtype.itemsize > 2 else "")
