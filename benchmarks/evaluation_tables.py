"""The tables of the pages on evaluation and on the demo, from the published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import markdown, measured_on
from benchmarks.report import read
from deepen_core.config import PRESETS
from deepen_core.fusion import strategy_of


def evaluation_tables() -> dict[str, str]:
    """Return every table of the page on evaluation by name."""
    tasks = read("tasks")
    found = {kind: _ways(tasks[kind]) for kind in ("choices", "open", "all") if tasks.get(kind)}
    return {**found, "specialist": _specialist(), "demo": _demo(), "machine": measured_on(tasks=tasks)}


def kinds_table() -> str:
    """Return the best way on all kinds of tasks, among those that gain beyond chance if any does; the default; members.

    Of the ensembles that were measured with the default weights; without votes, which take several answers.
    """
    kinds = {
        "choices": ("arc_challenge", "piqa", "mmlu"),
        "questions": ("triviaqa", "nq_open"),
        "sums": ("gsm8k",),
        "programs": ("humaneval",),
    }
    every = read("tasks")["all"]
    default = f"deepen, {strategy_of(PRESETS['deepen']).default_policy(asks_by_token=False)}"
    by_default = {row["members"]: row for row in every if row["way"] == default}
    ways = [row for row in every if row["points"] != "" and row["members"] in by_default and "votes" not in row["way"]]
    # Of equal ways the one that need not be fitted.
    best = max(ways, key=lambda row: (row["from"] > 0, row["mean"], ", fitted" not in row["way"]))
    alone = [row for row in every if row["members"] == best["members"] and row["way"].endswith(" alone")]
    usual = {**by_default[best["members"]], "way": f"{default} (the default)"}
    rows = [
        {**row, "95 %": _between(row)}
        | {kind: sum(row[task] for task in tasks) / len(tasks) for kind, tasks in kinds.items()}
        for row in ([usual] if best["way"] == default else [best, usual]) + alone
    ]
    return markdown(rows, {"way": ""} | dict.fromkeys((*kinds, "mean"), ".1f") | {"points": "+.1f", "95 %": ""})


def _between(row: Mapping[str, Any]) -> str:
    return "" if row["from"] == "" else f"{row['from']:+.1f} to {row['to']:+.1f}"


def _demo() -> str:
    """Return the table of the demo's right answers: each member alone, and the strategies with each as main."""
    rows = read("quality")["rows"]
    kinds = {name: ".0%" for name in rows[0] if name.startswith("known to ")}
    shown = [row for row in rows if row["who answers"].endswith(" alone") or row["who answers"] in PRESETS]
    return markdown(shown, {"who answers": "", "main": "", "exact match": ".1%"} | kinds)


def _ways(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of all ways to answer; the members are named once, and an interval has one column."""
    names = list(rows[0])
    shares = dict.fromkeys(names[names.index("way") + 1 : names.index("mean") + 1], ".1f")
    shown, last = [], None
    for row in rows:
        models = row["members"], row["main"]
        once = {} if models != last else {"members": "", "main": ""}
        shown.append({**row, **once, "95 %": _between(row)})
        last = models
    return markdown(
        shown,
        {"members": "", "main": "", "way": ""} | shares | {"points": "+.1f", "95 %": "", "others asked, %": ".0f"},
    )


def _specialist() -> str:
    """Return the table of a general model with a code specialist: programs, and bits a byte of texts."""
    general, specialist = "smollm2-135m", "qwen-coder-0.5b"
    kinds = next(
        row["kinds"] for row in read("byte_fusion")["all"] if row["pair"] == f"{specialist} + {general}"
    )  # with the specialist as main
    ways = {f"{specialist} alone": "main", f"{general} alone": "other", "deepen, adaptive": "deepen adaptive"}
    ways["deepen"] = "deepen 0.5"
    programs = {row["way"]: row["humaneval"] for row in read("tasks")["open"] if row["main"] == specialist}
    rows = [
        {"way": way, "humaneval": programs[way]} | {kind: kinds[kind][key] for kind in ("code", "prose", "story")}
        for way, key in ways.items()
    ]
    bits = {kind: f"{kind}, bits a byte" for kind in ("code", "prose", "story")}
    return markdown(
        rows, {"way": "", "humaneval": ".0f"} | dict.fromkeys(bits, ".3f"), {"humaneval": "HumanEval, % right"} | bits
    )


def demo_tables() -> dict[str, str]:
    """Return every table of the page on the demo by name: a line for each way to answer, a column for each task."""
    found = read("demo_tasks")
    ways: dict[str, dict[str, str]] = {}
    columns: dict[str, str] = {"way": ""}
    means: dict[str, list[float]] = {}
    for row in found["rows"]:
        column = row["task"] if row["members"].count("+") < 2 else f"{row['task']}, all three"
        way = "main alone" if row["way"] == f"{row['members'].split(' + ')[0]} alone" else row["way"]
        text = f"{row['mean']:.1f}"
        if len(found["seeds"]) > 1:
            text += f" ({row['lowest']:.1f} to {row['highest']:.1f})"
        ways.setdefault(way, {})[column] = text
        means.setdefault(way, []).append(row["mean"])
        columns[column] = ""
    best = sorted(ways, key=lambda way: (-len(means[way]), -sum(means[way]) / len(means[way])))
    rows = [dict.fromkeys(columns, "") | {"way": way} | ways[way] for way in best]
    return {"tasks": markdown(rows, columns)}
