"""How far an evaluation is, in the log of a job: nobody sees bars there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from deepen_core.progress import on_terminal

_TOLD_BY = "deepen_core.evaluation"


@contextmanager
def job_log() -> Iterator[None]:
    """Writes the log lines of evaluations to the error stream, unless that is a terminal, which shows bars."""
    if sys.stderr is None or on_terminal():
        yield
        return
    logger, handler = logging.getLogger(_TOLD_BY), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
