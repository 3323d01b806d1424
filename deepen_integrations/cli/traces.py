"""Traces in the terminal: an answer whose tokens have the colour of the member that decided them, and the tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from deepen_core.tracing import Trace, TraceStep
from deepen_core.tracing.drawing import (
    colour_of,
    decision_of,
    label_of,
    listed,
    percent,
    silence_of,
    visible,
)
from deepen_integrations.cli.console import console, write


class Painter:
    """Writes a streamed answer to the standard output, in colours if that is a terminal."""

    def __init__(self) -> None:
        self._console = console()
        self._waiting: list[tuple[str, Style]] = []  # what was chosen and not yet shown

    def write(self, text: str, trace: Trace | None) -> None:
        """Writes a piece of the answer.

        Args:
            text: The piece; it may lag behind the trace, where the beginning of a stop string is held back.
            trace: The steps since the last piece.
        """
        if not sys.stdout.isatty():
            write(text, newline=False)
            return
        if trace is not None:
            styles = (_style(trace, step) for step in trace.steps)
            self._waiting += [pair for pair in zip(trace.pieces(), styles, strict=True) if pair[0]]
        for part, style in self._coloured(text):
            self._console.print(Text(visible(part), style=style), end="", soft_wrap=True)

    def _coloured(self, text: str) -> Iterator[tuple[str, Style]]:
        """Yields the parts of a text with their styles; what the steps have and the text has not is left out."""
        while text and self._waiting:
            piece, style = self._waiting.pop(0)
            piece = piece[piece.find(text[0]) :] if text[0] in piece else ""
            shared = next((n for n in range(min(len(piece), len(text)), 0, -1) if piece[:n] == text[:n]), 0)
            if shared < len(piece) and shared == len(text):
                self._waiting.insert(0, (piece[shared:], style))
            if shared:
                yield text[:shared], style
                text = text[shared:]
        if text:
            yield text, Style()

    @staticmethod
    def explain(trace: Trace) -> None:
        """Writes the tables of a whole answer to the error stream."""
        print_trace(console(stderr=True), trace)


def print_trace(screen: Console, trace: Trace) -> None:
    """Prints who decided what: the steps in which members differ, and the summary by member."""
    differing = [step for step in trace.steps if step.decision != "agreement"]
    if differing:
        screen.print(_steps_table(trace, differing))
    agreed = len(trace.steps) - len(differing)
    screen.print(f"{len(trace.steps)} steps, in {agreed} of which all members agree.")
    screen.print(_summary_table(trace))


def _steps_table(trace: Trace, steps: list[TraceStep]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("token", "decided by", "fused", "main", "moved"):
        table.add_column(name, overflow="fold", justify="left" if name in {"token", "decided by"} else "right")
    for name in trace.members:
        table.add_column(Text(name, style=_colour(trace, name)), overflow="fold")
    for step in steps:
        numbers = (percent(step.probability), percent(step.main_probability), percent(step.moved))
        said = [Text(visible(listed(voice.heard[:3]) if voice.spoke else silence_of(voice))) for voice in step.voices]
        decided = Text(visible(decision_of(step).removesuffix(" decided")), style=_style(trace, step))
        table.add_row(Text(label_of(step)), decided, *numbers, *said)
    return table


def _summary_table(trace: Trace) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("member", "mean weight", "spoke", "silent", "decided", "gives the chosen tokens"):
        table.add_column(name, justify="left" if name == "member" else "right")
    for one in trace.summary():
        counts = (str(count) for count in (one.spoke, one.silent, one.decided))
        member = Text(visible(one.name), style=_colour(trace, one.name))
        table.add_row(member, percent(one.weight), *counts, percent(one.probability))
    return table


def _colour(trace: Trace, name: str) -> Style:
    return Style(color=colour_of(name, trace.main, trace.members))


def _style(trace: Trace, step: TraceStep) -> Style:
    if step.by is None:
        return Style()
    return _colour(trace, step.by) + Style(bold=step.decision == "other", underline=not step.is_likeliest)
