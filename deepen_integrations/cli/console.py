"""What a command writes: answers and tables to the standard output, everything else to the error stream.

What models, files and users say may hold control characters, which a terminal obeys. On a terminal they are shown as
escapes, as `ls` and `git` do; files and pipes get every character as it is. What is written to the error stream is for
people, so it has none anywhere.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable
from contextlib import suppress

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.text import Text

from deepen_core.visible_text import visible


def write(text: str = "", *, newline: bool = True) -> None:
    """Writes to the standard output.

    Raises:
        OSError: If it cannot be written to.
    """
    if sys.stdout is None or sys.stdout.closed:
        raise OSError(errno.EBADF, "The standard output is closed")
    typer.echo(visible(text) if sys.stdout.isatty() else text, nl=newline)


def console(*, stderr: bool = False) -> Console:
    """Returns a console for tables.

    Raises:
        OSError: If it is for the standard output, and that is closed.
    """
    if not stderr and (sys.stdout is None or sys.stdout.closed):
        raise OSError(errno.EBADF, "The standard output is closed")
    made = _Console(stderr=stderr, highlight=False)
    if stderr or made.is_terminal:
        made.push_render_hook(_Visible())
    return made


def notice(message: str, style: str = "yellow") -> None:
    """Prints a message to the error stream as one line, without interpreting markup in it."""
    with suppress(OSError):  # there is nowhere else to say it, and the command's result does not depend on it
        console(stderr=True).print(Text(visible(" ".join(message.split())), style=style), soft_wrap=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to the program, where rich would end it."""
        raise  # noqa: PLE0704 (rich calls this where it has caught the error)


class _Visible(RenderHook):
    """Makes control characters visible in all that is printed, after it has been laid out."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_VisibleText(renderable) for renderable in renderables]


class _VisibleText:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, made: Console, options: ConsoleOptions) -> RenderResult:
        yield from _visible(made.render(self._renderable, options))


def _visible(segments: Iterable[Segment]) -> Iterable[Segment]:
    for text, style, control in segments:
        yield Segment(text if control else visible(text), style, control)
