"""What `deepen doctor` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from deepen_integrations.doctor.findings import Report

_MARKS = {"ok": ("✓", "green"), "note": ("-", "yellow"), "wrong": ("✗", "bold red")}


def print_report(console: Console, report: Report) -> None:
    """Prints a row for each finding, under the titles of their sections, then what is wrong."""
    for section in report.sections:
        console.print(Text(section.title, style="bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(min_width=22, no_wrap=True)
        table.add_column(overflow="fold")
        for found in section.findings:
            mark, style = _MARKS[found.state]
            table.add_row(Text(mark, style=style), Text(found.topic), Text(found.said))
        console.print(table)
        console.print()
    count = len(report.wrong)
    said = "Nothing is wrong." if not count else f"{count} thing{'s are' if count > 1 else ' is'} wrong: see ✗ above."
    console.print(Text(said, style="bold red" if count else "bold green"))
