"""Published results as Markdown, with the machine named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADINGS = {
    "choices that fusion changes": "choice changed by fusion",
    "equal choices": "same choice",
    "steps where main is sure (>= 0.2)": "steps with main's top probability >= 0.2",
    "equal there": "same choice there",
    "of the limit": "fraction of the limit",
    "plain tokens/s": "as published, tokens/s",
    "against plain": "speedup over published",
    "against batch 1": "speedup over batch 1",
    "decoding against batch 1": "decoding speedup over batch 1",
    "of the whole": "share of total time",
    "ids run for one": "ids run, one prompt",
    "ids run for all": "ids run, all prompts",
    "dense GiB": "dense matrices, GiB",
    "dense ms": "dense matrices, ms",
    "spaces s": "calibration s",
}
"""The heading of a column if it is not the key under which the benchmark publishes it."""


def markdown(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], headings: Mapping[str, str] | None = None
) -> str:
    """Format some columns of published results as a Markdown table.

    Args:
        rows: Published results, one mapping per line of the table.
        columns: The keys to show, each with the format of its numbers, or "" for text.
        headings: Headings of this table, which replace those in `HEADINGS`.
    """
    shown = {**HEADINGS, **(headings or {})}
    numbers = [bool(form) for form in columns.values()]
    lines = [[shown.get(key, key) for key in columns], ["---:" if number else "---" for number in numbers]]
    lines += [[_written(row[key], form) for key, form in columns.items()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _written(value: Any, form: str) -> str:
    return str(value) if isinstance(value, str) or not form else format(value, form)


def measured_on(**contents: Mapping[str, Any]) -> str:
    """Return a sentence on the machines of some published results, by the name of the benchmark."""
    seen = {name: content["machine"] for name, content in contents.items()}
    said = [
        f"`{n}` on {m['cpu']}, threads: {m['threads']}, GPU: {m['gpu']}, torch {m['torch']}" for n, m in seen.items()
    ]
    return f"Measured: {'; '.join(said)}."
