"""The plot of an evaluation, for those who have matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepen_core.evaluation.summary import Summary


def plotted(summary: Summary, path: Path) -> bool:
    """Draws how much better each way to answer is than the best member, if matplotlib is installed.

    Args:
        summary: The table.
        path: The file, whose ending says its format.

    Returns:
        Whether it was drawn.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (an extra)
    except ImportError:
        return False
    rows = [(row, row.difference) for row in reversed(summary.rows) if row.difference is not None]
    figure = Figure(figsize=(7.2, 1.2 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (row, off) in enumerate(rows):
        colour = "#4477aa" if row.main else "#888888"
        spread = [[100 * (off.mean - off.low)], [100 * (off.high - off.mean)]]
        axes.errorbar([100 * off.mean], [place], xerr=spread, fmt="o", color=colour, markersize=4)
    labels = [f"{row.label}, main {row.main}" if row.main else row.label for row, _ in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(
        f"points against {summary.best_member.label} ({100 * summary.best_member.mean:.1f} %), 95 % intervals"
    )
    figure.savefig(path)
    return True
