"""What `deepen eval --demo` compares: the demo's own tasks, each by the members that can have a part in it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deepen_core.demo import MEMBERS, TRANSLATOR, write_tasks
from deepen_integrations.cli.opening import open_ensemble
from deepen_integrations.cli.options import EnsembleOptions

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.evaluation.plan import Plan

TRANSLATING = (TRANSLATOR, MEMBERS[0])
"""The members that translate together."""


@dataclass(frozen=True)
class Part:
    """Tasks that one ensemble is evaluated on.

    Attributes:
        plan: What to evaluate.
        open: Loads the ensemble.
        output: The folder that keeps what is measured, if any.
    """

    plan: Plan
    open: Callable[[], Ensemble]
    output: str | None


def demo_parts(plan_of: Callable[[Sequence[str]], Plan], load: EnsembleOptions, output: str | None) -> list[Part]:
    """Returns the demo's tasks: questions for the two causal members, and sentences for the translator and the first.

    Args:
        plan_of: Returns the plan for files of tasks.
        load: Options of the ensemble.
        output: Holds a folder for each part; None keeps nothing.

    Raises:
        DeepenError: If the plan cannot be evaluated.
    """
    with tempfile.TemporaryDirectory() as folder:
        *asked, translated = map(str, write_tasks(folder))
        plans = {"questions": (MEMBERS, plan_of(asked)), "translation": (TRANSLATING, plan_of([translated]))}
    return [
        Part(plan, partial(open_ensemble, load, demo=members), None if output is None else str(Path(output) / name))
        for name, (members, plan) in plans.items()
    ]
