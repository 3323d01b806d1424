"""Reads what a user types in a conversation."""

from __future__ import annotations

import sys

import typer

_PROMPT, _MORE = "> ", "... "
_QUOTES = '"""'


def read_message() -> str | None:
    """Reads a line, or several between triple quotes.

    Returns:
        The text without white space around it; None at the end of the input, also between quotes.

    Raises:
        KeyboardInterrupt: For Ctrl-C.
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
    typing = sys.stdin.isatty()
    edited = typing and sys.stdout.isatty()
    if typing and not edited:
        typer.echo(prompt, nl=False, err=True)
    try:
        return input(prompt) if edited else input()
    except EOFError:
        if typing:
            typer.echo(err=True)
        return None
