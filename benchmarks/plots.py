"""Plots of `docs/fusion.md`, from the published results of the benchmarks; `benchmarks.page` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.worlds import CLASSES

_COLOURS = {"low": "#4477aa", "mid": "#ee7733", "high": "#aa3377", "other": "#888888"}
STYLE = {
    "svg.hashsalt": "deepen",  # equal numbers give an identical file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
}


def speed(results: dict[str, Any]) -> Figure:
    """Plot milliseconds per token by world: whole matrices, and the fast path cold and warm."""
    figure = Figure(figsize=(7.2, 3.0))
    axes = figure.subplots()
    of_world = {r["world"]: r for r in results["rows"] if (r["rows"], r["entropy"]) == (1, "mid")}
    dense = {r["world"]: r["dense ms"] for r in results["the plain way"]}
    kinds = {
        "whole matrices": ([dense.get(w) for w in of_world], "other"),
        "cold, no row built": ([r["cold ms"] for r in of_world.values()], "mid"),
        "warm, all rows built": ([r["ms"] for r in of_world.values()], "low"),
    }
    for place, (label, (values, colour)) in enumerate(kinds.items()):
        at = [x + 0.26 * (place - 1) for x in range(len(values))]
        known = [v if isinstance(v, float) else 1.0 for v in values]  # the bottom of the axis
        bars = axes.bar(at, known, 0.24, label=label, color=_COLOURS[colour])
        axes.bar_label(bars, [_milliseconds(v) for v in values], fontsize=7)
    axes.set_yscale("log")
    axes.set_ylim(1, 30_000)
    labels = [f"{w}\n{r['V / V / A / d']}".replace(" with ", " with\n") for w, r in of_world.items()]
    axes.set_xticks(range(len(of_world)), labels, fontsize=7)
    axes.set_ylabel("ms to fuse one token")
    axes.legend(ncols=3, frameon=False, fontsize=8)
    return figure


def _milliseconds(value: Any) -> str:
    if not isinstance(value, float):
        return "does\nnot fit"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def limits(results: dict[str, Any]) -> Figure:
    """Plot the distance from the exact result for each value of each limit."""
    names = list(dict.fromkeys(row["limit"] for row in results["limits"]))
    defaults = {"row_floor": 1e-3, "row_entries": 16, "candidates": 512, "images": 64}
    figure = Figure(figsize=(7.2, 4.6))
    for axes, name in zip(figure.subplots(2, 2).flat, names, strict=True):
        assert isinstance(axes, Axes)
        rows = [row for row in results["limits"] if row["limit"] == name]
        values = sorted({row["value"] for row in rows})
        for entropy in CLASSES:
            heights = {row["value"]: row["mean total variation"] for row in rows if row["entropy"] == entropy}
            axes.plot([heights[v] for v in values], "o-", ms=3, color=_COLOURS[entropy], label=f"{entropy} entropy")
        axes.set_xticks(range(len(values)), [f"{v:g}" for v in values])
        axes.axvline(values.index(defaults[name]), color="k", lw=0.8, ls=":")
        axes.set_xlabel(f"{name} (dotted: default)")
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("mean total variation")
    figure.axes[2].set_ylabel("mean total variation")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def sharpness(results: dict[str, Any]) -> Figure:
    """Plot self-mass at the published temperature and at the calibrated one."""
    figure = Figure(figsize=(7.2, 2.8))
    left, right = figure.subplots(1, 2)
    likeness = sorted({row["common component"] for row in results["sharpness"]})
    for common, colour in zip(likeness, ("low", "mid", "high"), strict=True):
        rows = [row for row in results["sharpness"] if row["common component"] == common]
        sizes = [row["anchors"] for row in rows]
        left.plot(sizes, [r["self-mass at 100"] for r in rows], "o-", ms=3, color=_COLOURS[colour], label=f"{common}")
        left.plot(sizes, [r["self-mass"] for r in rows], "s--", ms=3, color=_COLOURS[colour])
        right.plot(sizes, [r["calibrated temperature"] for r in rows], "s--", ms=3, color=_COLOURS[colour])
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("anchors")
    left.set_ylabel("self-mass of an anchor")
    left.set_ylim(0, 1)
    left.legend(title="similarity of all tokens", frameon=False, fontsize=7, title_fontsize=7)
    right.set_yscale("log")
    right.axhline(100, color="k", lw=0.8, ls=":")
    right.set_ylabel("calibrated temperature")
    return figure


def convergence(results: dict[str, Any]) -> Figure:
    """Plot how fast the searches approach their target."""
    figure = Figure(figsize=(7.2, 2.6))
    axes = figure.subplots()
    rows: Sequence[dict[str, Any]] = results["convergence"]
    for name, colour in zip([key for key in rows[0] if key != "steps"], ("low", "mid", "high"), strict=True):
        heights = [max(row[name], 1e-6) for row in rows]
        axes.plot([row["steps"] for row in rows], heights, "o-", ms=3, color=_COLOURS[colour], label=name)
    axes.set_yscale("log")
    axes.set_xlabel("search steps")
    axes.set_ylabel("divergence from the target, nats")
    axes.axvline(5, color="k", lw=0.8, ls=":")
    axes.legend(frameon=False, fontsize=8)
    return figure


def generation(results: dict[str, Any]) -> Figure:
    """Plot the rows built at each step of a generation from a cold start."""
    figure = Figure(figsize=(7.2, 2.4))
    axes = figure.subplots()
    for (name, new), colour in zip(results["new_rows"].items(), ("low", "mid"), strict=False):
        axes.plot(range(1, len(new) + 1), new, lw=0.7, color=_COLOURS[colour], label=name)
    axes.set_xlabel("token in the answer")
    axes.set_ylabel("relative rows built")
    axes.legend(frameon=False, fontsize=8)
    return figure


def pictures(fusion: dict[str, Any], fidelity: dict[str, Any]) -> dict[str, Figure]:
    """Return every plot of the page by name.

    Args:
        fusion: Results of `benchmarks.fusion`.
        fidelity: Results of `benchmarks.fidelity`.
    """
    return {
        "speed": speed(fusion),
        "generation": generation(fusion),
        "limits": limits(fidelity),
        "sharpness": sharpness(fidelity),
        "convergence": convergence(fidelity),
    }
