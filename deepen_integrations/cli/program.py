"""Runs `deepen` as a program: how it ends where its input is closed, or its output cannot be written."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from deepen_core.visible_text import visible
from deepen_integrations.cli.console import notice

BROKEN_PIPE = 141
"""As a shell reports programs that SIGPIPE ends, such as `cat big | head -1`; `set -o pipefail` scripts know it."""

_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What wrong options raise; typer has brought its own copy of click since 0.25."""


def run(commands: typer.Typer) -> int:
    """Runs the command that the process's arguments name, and returns the exit code."""
    with _shown_controls():
        return _run(commands)


def _run(commands: typer.Typer) -> int:
    try:
        code = commands(prog_name="deepen", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except _USAGE as problem:
        problem.message = visible(problem.message)
        problem.show()
        return int(problem.exit_code)
    except typer.Abort:
        notice("Interrupted.")
        return 130
    except OSError as problem:
        return output_failed(problem)
    return code if isinstance(code, int) else 0


def output_failed(problem: OSError) -> int:
    """Says that something cannot be written or read, and returns the exit code. A reader that is gone is not told."""
    if problem.errno in (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT):
        _drop_output()
    if problem.errno == errno.EPIPE:
        return BROKEN_PIPE
    place = "" if problem.filename is None else f" ({problem.filename})"
    notice(f"Error: {problem.strerror or problem}{place}.", style="bold red")
    return 1


def _drop_output() -> None:
    """Sends what is still in the buffer nowhere: Python would try to write it again at its end, and complain."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def _shown_controls() -> Iterator[None]:
    """Makes control characters visible in log lines and warnings, which name folders and quote files."""
    make, form = logging.getLogRecordFactory(), warnings.formatwarning

    def record(*args: Any, **options: Any) -> logging.LogRecord:
        made = make(*args, **options)
        with suppress(TypeError, ValueError):  # a message that does not fit its values is reported by its handler
            made.msg, made.args = visible(made.getMessage()), ()
        return made

    logging.setLogRecordFactory(record)
    warnings.formatwarning = lambda message, *args, **options: form(visible(str(message)), *args, **options)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
        warnings.formatwarning = form
