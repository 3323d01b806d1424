"""What ensembles of real models are worth on public test sets: the evaluations of `deepen eval`, with all they compare.

Run with `python -m benchmarks.tasks --models FOLDER --output FOLDER`, where the first one has those of
`benchmarks.given_text.MODELS`, and the second keeps what is measured: the same command goes on where it stopped. One
ensemble and kind of task is measured at a time, and its results are added to those that are published already;
`--help` lists the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.given_text import MODELS, SETS, opened
from benchmarks.report import RESULTS, publish
from benchmarks.report import read as published
from deepen_core import Ensemble
from deepen_core.config.fusion import PRESETS
from deepen_core.evaluation.items import Task
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.run import Outcome
from deepen_core.evaluation.task_file import read_task
from deepen_integrations.cli.job_log import job_log

CHOICES = ("arc_challenge", "piqa", "mmlu")
OPEN = ("triviaqa", "nq_open", "gsm8k", "humaneval")
KINDS = {"choices": CHOICES, "open": OPEN, "all": (*CHOICES, *OPEN)}
"""Tasks that are compared together; "all" shows whether a general model and a specialist are worth more than one."""
_KEY = ("members", "main", "dtype", "form")
_ANSWERED = 60
"""Items that weights are fitted on of tasks with open answers, which each member writes alone."""
_SHOTS = 4
"""Items of a task that are shown with their answers, in plain text; weights are fitted on those after them."""


def plan(
    kind: str, items: Mapping[str, int], main: int, fusions: Sequence[str], *, chat: bool, votes: int, fit_items: int
) -> Plan:
    """What to compare on a kind of task.

    Args:
        kind: One of `KINDS`.
        items: Most items of each task with choices, and of each open one, by these kinds.
        main: The number of the main member.
        fusions: Strategies for tasks with choices; open questions are answered by the first one.
        chat: Ask in conversations.
        votes: Number of samples that vote on open questions; 0 for none.
        fit_items: Most items of each task with choices that weights are fitted on, which are in other files than those
            compared on.
    """
    tasks = [_items(f"{name}-test", items["open" if name in OPEN else "choices"]) for name in KINDS[kind]]
    if kind == "choices":
        fitted_on = [_items(f"{name}-dev", fit_items) for name in CHOICES]
        return Plan(tasks, fitted_on, fusions=fusions, mains=(main,))
    shots = [] if chat else [_items(f"{name}-dev", _SHOTS) for name in OPEN if name != "humaneval"]
    settings: dict[str, Any] = {"fusions": fusions[:1], "mains": (main,), "shots": shots, "votes": votes}
    fitted_on = [_items(f"{name}-dev", _ANSWERED, after=_SHOTS) for name in OPEN]
    if kind == "all":
        fitted_on = [*(_items(f"{name}-dev", fit_items) for name in CHOICES), *fitted_on]
        return Plan(tasks, fitted_on, policies=("adaptive", "perplexity", "context"), gates=(), together=50, **settings)
    settings |= {"policies": ("adaptive", "confidence"), "gates": (0.9,)}
    return Plan(tasks, fitted_on, chat=chat, together=25, **settings)


def _items(name: str, most: int, after: int = 0) -> Task:
    task = read_task(SETS / f"{name}.jsonl", after + most)
    return Task(task.name, task.items[after:])


def rows(outcome: Outcome, ensemble: Ensemble, **label: Any) -> list[dict[str, Any]]:
    """One row for each way to answer, best first."""
    members = {"members": " + ".join(member.name for member in ensemble.info.members), **label}
    order = [f"{name}-test" for name in KINDS["all"]]
    costs = {(one.label, one.main): one for one in outcome.costs}
    found = []
    for row in outcome.summary.rows:
        off = row.difference
        points = ("", "", "") if off is None else (100 * off.mean, 100 * off.low, 100 * off.high)
        ordered = sorted(row.shares, key=order.index)
        shares = {name.removesuffix("-test"): 100 * row.shares[name] for name in ordered}
        cost = costs.get((row.label, row.main))
        asked = cost.asked if cost else outcome.asked.get(row.main, {}).get(row.label.rpartition("gate ")[2])
        found.append(
            {**members, "way": row.label, **shares, "mean": 100 * row.mean}
            | dict(zip(("points", "from", "to"), points, strict=True))
            | {"others asked, %": "" if asked is None else 100 * asked}
        )
    return found


def measure(
    ensemble: Ensemble, asked: Plan, folder: Path, at_equal_weights: Sequence[str] = (), **label: Any
) -> tuple[list[dict[str, Any]], str]:
    """Returns one row for each way to answer, best first, and what is recommended of the plan's.

    Args:
        ensemble: The members.
        asked: What to compare.
        folder: Keeps what is measured.
        at_equal_weights: Strategies that are compared too, but at equal weights alone since they take long.
        label: What the rows begin with.
    """
    outcome = ensemble.evaluate(asked, output=folder)
    found = rows(outcome, ensemble, **label)
    if at_equal_weights:
        more = dataclasses.replace(asked, fusions=at_equal_weights, fitted_on=(), policies=(), gates=(), votes=0)
        known = {row["way"] for row in found}
        slow = rows(ensemble.evaluate(more, output=folder / "equal"), ensemble, **label)
        found = sorted([*found, *(row for row in slow if row["way"] not in known)], key=lambda row: -row["mean"])
    return found, outcome.summary.advice


def add(kind: str, found: Sequence[dict[str, Any]], advice: str) -> None:
    """Publishes the results of an ensemble beside those of others; they take the place of its earlier ones."""
    held = published("tasks") if (RESULTS / "tasks.json").is_file() else {}
    key = [found[0][name] for name in _KEY]
    tables = {name: held.get(name, []) for name in KINDS}
    ensembles = {tuple(row[name] for name in _KEY): list[dict[str, Any]]() for row in tables[kind]}
    for row in tables[kind]:
        ensembles[tuple(row[name] for name in _KEY)].append(row)
    tables[kind] = [row for rows in (ensembles | {tuple(key): list(found)}).values() for row in rows]
    advised = {**held.get("advice", {}), ", ".join([kind, *key]): advice}
    publish("tasks", advice, found, **{name: table for name, table in tables.items() if table}, advice=advised)


def main() -> None:
    """Measures one ensemble on one kind of task, and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--output", type=Path, required=True, help="keeps what is measured")
    parser.add_argument("--members", nargs="+", default=list(MODELS)[:2], choices=list(MODELS))
    parser.add_argument("--main", type=int, default=0, help="number of the main member, from 0")
    parser.add_argument("--kind", default="choices", choices=list(KINDS))
    parser.add_argument("--fusions", nargs="+", default=["deepen", "product"], choices=list(PRESETS))
    parser.add_argument("--equal", nargs="+", default=[], choices=list(PRESETS), help="more, at equal weights alone")
    parser.add_argument("--items", type=int, default=500, help="of each task with choices")
    parser.add_argument("--open-items", type=int, default=100, help="of each task with open answers")
    parser.add_argument(
        "--fit-items", type=int, default=120, help="of each task with choices that weights are fitted on"
    )
    parser.add_argument("--votes", type=int, default=0, help="samples that vote on open questions")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.models is None or not SETS.is_dir():
        print(f"Give --models, a folder with {', '.join(MODELS)}, and put the test sets into {SETS}.")
        return
    with job_log(), opened(given.models, given.members, given.dtype, given.device) as ensemble:
        chat = given.kind == "open" and ensemble.has_chat_template
        items = {"choices": given.items, "open": given.open_items}
        more = {"votes": given.votes, "fit_items": given.fit_items}
        asked = plan(given.kind, items, given.main, given.fusions, chat=chat, **more)
        folder = given.output / f"{'+'.join(given.members)}-{given.kind}-{given.dtype}"
        form = "conversation" if chat else "plain text"
        label = {"main": given.members[given.main], "dtype": given.dtype, "form": form}
        add(given.kind, *measure(ensemble, asked, folder, given.equal, **label))


if __name__ == "__main__":
    main()
