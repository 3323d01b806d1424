"""What the demo's ensembles are worth on its four tasks, for models that were trained from several seeds.

Run with `python -m benchmarks.demo_tasks SEED1 SEED2 SEED3`, the folders that `training/train_demo.py --seed N --out`
and `training/train_ferry.py --seed N --out` have written; without any, it takes the models that are shipped, those of
seed 1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import publish
from deepen_core import Ensemble
from deepen_core.demo import MEMBERS, TRANSLATOR, member_paths, unread, write_tasks
from deepen_core.evaluation.items import Task
from deepen_core.evaluation.run import Plan
from deepen_core.evaluation.task_file import read_task

FUSIONS = ("deepen", "product")
WAYS = tuple(way for fusion in FUSIONS for way in (fusion, f"{fusion}, adaptive"))
"""At equal weights, and at those that an ensemble has by default."""


@dataclass(frozen=True)
class Group:
    """Members that answer some tasks together.

    Attributes:
        members: Their names, main first.
        tasks: The names of the tasks.
    """

    members: tuple[str, ...]
    tasks: tuple[str, ...]


GROUPS = (
    Group(MEMBERS, ("facts", "passages", "sums")),
    Group((TRANSLATOR, MEMBERS[0]), ("translation",)),
    Group((TRANSLATOR, *MEMBERS), ("translation",)),
)


def measure(group: Group, folders: Sequence[Path], tasks: Mapping[str, Task], output: Path | None) -> dict[str, Any]:
    """Returns the share of right answers, or the mean chrF from 0 to 1, by way to answer and task.

    Args:
        group: Who answers what.
        folders: Of the models, in the order of the group's members.
        tasks: All tasks by their names.
        output: Keeps what is measured; None keeps nothing.
    """
    forms = {name: unread for name in group.members if TRANSLATOR in group.members and name != TRANSLATOR}
    plan = Plan([tasks[name] for name in group.tasks], fusions=FUSIONS, policies=(), gates=(), together=32)
    with Ensemble.load(folders, prompts=forms, progress=False, device="cpu") as ensemble:
        rows = ensemble.evaluate(plan, output=output).summary.rows
    return {row.label: row.shares for row in rows}


def spread(seeds: Sequence[Mapping[str, Mapping[str, float]]], group: Group) -> list[dict[str, Any]]:
    """Returns a line for each task and way to answer: mean, lowest and highest value of all seeds.

    Args:
        seeds: What `measure` has found for each.
        group: Who has answered what.
    """
    lines = []
    for task in group.tasks:
        for way in (*(f"{name} alone" for name in group.members), *WAYS):
            values = [100 * found[way][task] for found in seeds]
            mean = sum(values) / len(values)
            members = " + ".join(group.members)
            bounds = {"mean": mean, "lowest": min(values), "highest": max(values)}
            lines.append({"task": task, "members": members, "way": way, **bounds})
    return lines


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=Path, help="folders of trained models, one for each seed")
    parser.add_argument("--limit", type=int, help="at most so many items of each task")
    parser.add_argument("--output", type=Path, help="keep what is measured here, and go on from there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = given.seeds or [member_paths()[0].parent]
    with tempfile.TemporaryDirectory() as folder:
        tasks = {task.name: task for path in write_tasks(folder) if (task := read_task(path, given.limit))}
    rows = []
    for number, group in enumerate(GROUPS):
        found = []
        for seed in seeds:
            output = None if given.output is None else given.output / f"{seed.name}-{number}"
            found.append(measure(group, [seed / name for name in group.members], tasks, output))
        rows += spread(found, group)
    title = f"Right answers in %, for translations chrF, on the demo's tasks; {len(seeds)} seeds"
    publish("demo_tasks", title, rows, seeds=len(seeds), items={name: len(t.items) for name, t in tasks.items()})


if __name__ == "__main__":
    main()
