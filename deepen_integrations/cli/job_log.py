"""What long work tells where nobody sees its bars: in the log of a job."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TOLD_BY = "deepen_core.evaluation"


@contextmanager
def job_log() -> Iterator[None]:
    """Writes how far an evaluation is to the error stream, a line at a time, unless that is a terminal, with bars."""
    if sys.stderr is None or sys.stderr.isatty():
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
