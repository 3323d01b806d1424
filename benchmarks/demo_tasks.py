"""What the demo's ensembles are worth on its four tasks, for models that were trained from several seeds.

Run with `python -m benchmarks.demo_tasks SEED1 SEED2 SEED3`, the folders that `training/train_demo.py --seed N --out`
and `training/train_ferry.py --seed N --out` have written, of different names. Training takes about half an hour a seed;
with `--keep`, the seeds of one day stand in the table beside those of another.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import machine, publish
from benchmarks.report import read as published
from deepen_core import Ensemble
from deepen_core.demo import MEMBERS, TRANSLATOR, unread, write_tasks
from deepen_core.evaluation.items import Task
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.task_file import read_task
from deepen_integrations.cli.job_log import job_log

FUSIONS = ("deepen", "deepen-paper", "product", "union", "translate", "bytes")
VOTING = ("deepen", "product")
"""Strategies whose samples vote, beside those of the members alone."""
_TOGETHER = 32


@dataclass(frozen=True)
class Group:
    """Members that answer some tasks together.

    Attributes:
        members: Their names, main first.
        tasks: The names of the tasks.
    """

    members: tuple[str, ...]
    tasks: tuple[str, ...]

    @property
    def label(self) -> str:
        """The group in the table."""
        return " + ".join(self.members)


GROUPS = (
    Group(MEMBERS, ("facts", "passages", "sums")),
    Group((TRANSLATOR, MEMBERS[0]), ("translation",)),
    Group((TRANSLATOR, *MEMBERS), ("translation",)),
)


def measure(
    group: Group,
    folders: Sequence[Path],
    tasks: Mapping[str, Task],
    fitted_on: Sequence[Task],
    output: Path | None,
    *,
    fusions: Sequence[str] = FUSIONS,
    votes: int = 0,
) -> dict[str, dict[str, float]]:
    """Returns the share of right answers, or the mean chrF from 0 to 1, by way to answer and task.

    Args:
        group: Who answers what.
        folders: Of the models, in the order of the group's members.
        tasks: All tasks by their names.
        fitted_on: Weights are fitted on these.
        output: Keeps what is measured; None keeps nothing.
        fusions: The strategies.
        votes: Number of samples of each member and of the strategies in `VOTING` that vote on questions; 0 for none.
    """
    forms = {name: unread for name in group.members if TRANSLATOR in group.members and name != TRANSLATOR}
    asked = [tasks[name] for name in group.tasks]
    plans = [Plan(asked, fitted_on, fusions=fusions, together=_TOGETHER)]
    if votes and any(task.open for task in asked):
        plans.append(Plan(asked, fusions=VOTING, policies=(), gates=(), votes=votes, together=_TOGETHER))
    found = {}
    with job_log(), Ensemble.load(folders, prompts=forms, progress=False, device="cpu") as ensemble:
        for plan in plans:
            rows = ensemble.evaluate(plan, output=output).summary.rows
            found |= {_without_weights(row.label): dict(row.shares) for row in rows}
    return found


def _without_weights(label: str) -> str:
    """Names a way to answer alike for all seeds: fitted weights are not in it."""
    return re.sub(r"(, fitted(?: perplexity)?)(?:, static)? [\d. ]+$", r"\1", label)


def spread(seeds: Sequence[Mapping[str, Mapping[str, float]]], group: Group) -> list[dict[str, Any]]:
    """Returns a line for each task and way to answer, best first: mean, lowest and highest value of all seeds.

    Args:
        seeds: What `measure` has found for each.
        group: Who has answered what.
    """
    lines = []
    for task in group.tasks:
        found = []
        for way in seeds[0]:
            values = [100 * seed[way][task] for seed in seeds]
            bounds = {"mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}
            found.append({"task": task, "members": group.label, "way": way, **bounds})
        lines += sorted(found, key=lambda line: -line["mean"])
    return lines


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="+", type=Path, help="folders of trained models, one for each seed")
    parser.add_argument("--limit", type=int, help="at most so many items of each task")
    parser.add_argument("--output", type=Path, help="keep what is measured here, and go on from there")
    parser.add_argument("--keep", action="store_true", help="the published results of seeds with other names")
    parser.add_argument("--fitted", type=int, default=120, help="items of each task that weights are fitted on")
    parser.add_argument("--votes", type=int, default=5, help="samples that vote")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tasks = {path.stem: read_task(path, given.limit) for path in write_tasks(folder)}
        others = {path.stem: read_task(path, given.fitted) for path in write_tasks(folder, "validation")}
    items = {name: len(task.items) for name, task in tasks.items()}
    seeds = dict(published("demo_tasks")["seeds"]) if given.keep else {}
    for seed in given.seeds:
        shares = {}
        for number, group in enumerate(GROUPS):
            output = None if given.output is None else given.output / f"{seed.name}-{number}"
            fitted_on = [others[name] for name in group.tasks]
            folders = [seed / name for name in group.members]
            shares[group.label] = measure(group, folders, tasks, fitted_on, output, votes=given.votes)
        seeds[seed.name] = {"items": items, "machine": machine(), "shares": shares}
    if any(found["items"] != items for found in seeds.values()):
        parser.error("The seeds kept were asked other numbers of items: measure them again, or give no --keep.")
    seeds = dict(sorted(seeds.items()))
    rows = [line for g in GROUPS for line in spread([found["shares"][g.label] for found in seeds.values()], g)]
    title = f"Right answers in %, for translations chrF, on the demo's tasks; {len(seeds)} seeds"
    publish("demo_tasks", title, rows, seeds=seeds)


if __name__ == "__main__":
    main()
