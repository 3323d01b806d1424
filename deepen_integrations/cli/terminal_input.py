"""Reads what a user types in a conversation."""

from __future__ import annotations

import sys
from typing import TextIO

import typer

from deepen_core.errors import PromptError

_PROMPT, _MORE = "> ", "... "
_QUOTES = '"""'


def standard_input() -> TextIO:
    """Returns the standard input.

    Raises:
        PromptError: If it is closed.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise PromptError("The standard input is closed, so nothing can be read from it: give a text, or pipe one in.")
    return sys.stdin


def read_input() -> str:
    """Returns the whole standard input without its last newline.

    Raises:
        PromptError: If it is closed, or is not text.
    """
    try:
        return standard_input().read().removesuffix("\n")
    except UnicodeDecodeError as problem:
        raise PromptError(f"The standard input is not text ({problem}): give it as UTF-8.") from problem


def read_message() -> str | None:
    """Reads a line, or several between triple quotes.

    Returns:
        The text without white space around it; None at the end of the input, also between quotes.

    Raises:
        KeyboardInterrupt: For Ctrl-C.
        PromptError: If the standard input is closed, or is not text.
    """
    line = _read_line(_PROMPT)
    if line is None or not line.strip().startswith(_QUOTES):
        return line and line.strip()
    lines = [line.strip().removeprefix(_QUOTES)]
    while not lines[-1].rstrip().endswith(_QUOTES):
        line = _read_line(_MORE)
        if line is None:
            return None
        lines.append(line)
    return "\n".join(lines).strip().removesuffix(_QUOTES).strip()


def _read_line(prompt: str) -> str | None:
    """Reads a line; None at the end of the input. The prompt never goes to a standard output that is not a terminal."""
    typing = standard_input().isatty()
    edited = typing and sys.stdout is not None and sys.stdout.isatty()
    if typing and not edited:
        typer.echo(prompt, nl=False, err=True)
    try:
        return input(prompt) if edited else input()
    except EOFError:
        if typing:
            typer.echo(err=True)
        return None
    except UnicodeDecodeError as problem:
        raise PromptError(f"The standard input is not text ({problem}): give it as UTF-8.") from problem
