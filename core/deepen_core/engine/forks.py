"""Forks of a process that has computed: torch's threads exist only in the parent, and waiting for them never ends."""

from __future__ import annotations

import logging
import os

import torch

_log = logging.getLogger("deepen_core")
_computed_in: int | None = None  # the process that loaded an ensemble first


def before_computing() -> None:
    """Lets a fork compute on one thread, for the whole process, if its parent has loaded an ensemble before.

    Call it before anything is computed in this process. A parent that has only imported this package changes nothing.
    """
    global _computed_in  # noqa: PLW0603  a fact of the process
    if _computed_in not in (None, os.getpid()) and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        _log.warning(
            "Process %d is a fork of %s, which has loaded an ensemble: torch's other threads exist only there, so this "
            "one computes on a single thread. To use more, fork before a load, or start processes by spawn.",
            os.getpid(),
            _computed_in,
        )
    _computed_in = os.getpid()
