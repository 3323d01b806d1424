"""The records of a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    """What was looked at, such as "torch" or "chat template"."""
    said: str
    """What was found, with the reason and the way out where it is not as it should be."""
    state: State = "ok"
    """"wrong" is what keeps the ensemble from working, "note" what it cannot do or what was not looked at."""


@dataclass(frozen=True)
class Section:
    """Findings that belong together."""

    title: str
    findings: list[Finding]


@dataclass(frozen=True)
class Report:
    """Everything that was found."""

    sections: list[Section]

    @property
    def wrong(self) -> list[Finding]:
        """What keeps the ensemble from working."""
        return [found for section in self.sections for found in section.findings if found.state == "wrong"]


def size(count: int) -> str:
    """Formats a number of bytes, such as `12.3 MiB`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:.3g} GiB"
