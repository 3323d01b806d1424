"""Lack of memory: how to tell that it is why something failed, and what helps."""

from __future__ import annotations

import torch

MORE_ROOM = "Lower max_batch_size, or shorten the prompt."
"""What helps where memory is lacking."""

_OUT_OF_MEMORY = ("allocate memory", "out of memory", "alloc_failed")


def is_memory(problem: BaseException) -> bool:
    """Whether a lack of memory is the reason; libraries have several words for it."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(problem).lower() if isinstance(problem, (OSError, RuntimeError)) else ""
    return any(words in said for words in _OUT_OF_MEMORY)


def more_room(dtype: torch.dtype) -> str:
    """What helps a member that does not fit."""
    return "Use another device" + (", or a smaller dtype such as 'bfloat16'" if dtype.itemsize > 2 else "")
