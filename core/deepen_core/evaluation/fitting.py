"""Weights that are fitted on examples, by how many are answered right, or by how likely the right answers become."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Literal

from typing_extensions import Self

from deepen_core.errors import EvaluationError
from deepen_core.evaluation.evaluation import rights
from deepen_core.evaluation.items import Task
from deepen_core.evaluation.likelihood import ChoiceScores
from deepen_core.evaluation.settings import Setting, equal, grid_of_weights

By = Literal["score", "likelihood"]
_PARTS = {2: 10, 3: 5}
"""Number of parts that one is divided into, by the number of members."""


@dataclass(frozen=True)
class FittedWeights:
    """Weights, and what they were fitted on.

    Attributes:
        members: The members' names.
        main: The name of the main member.
        fusion: The name of the strategy.
        weights: One number per member, summing to one.
        by: What was best: "score", the share of right answers, or "likelihood", the bits a byte of right answers.
        tasks: Names of the tasks.
        value: What it came to: a share, or bits.
        equal_value: What equal weights come to.
    """

    members: list[str]
    main: str
    fusion: str
    weights: list[float]
    by: By
    tasks: list[str]
    value: float
    equal_value: float

    def save(self, path: str | Path) -> None:
        """Saves them as JSON.

        Raises:
            EvaluationError: If the file cannot be written.
        """
        try:
            Path(path).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as problem:
            raise EvaluationError(f"The weights cannot be saved: {problem}") from problem

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Loads what `save` saved.

        Raises:
            EvaluationError: If the file cannot be read, or holds something else.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as problem:
            raise EvaluationError(f"{path} does not hold fitted weights: {problem}") from problem


def candidates(fusion: str, members: int) -> list[Setting]:
    """Returns the settings that weights are chosen from, equal weights first.

    Args:
        fusion: The name of the strategy.
        members: Number of members.
    """
    grid = grid_of_weights(members, _PARTS.get(members, 4))
    return [
        Setting(fusion, equal(members)),
        *(Setting(fusion, weights) for weights in grid if weights != equal(members)),
    ]


def best(
    tasks: Sequence[tuple[Task, Sequence[ChoiceScores]]], settings: Sequence[Setting], by: By
) -> tuple[Setting, float]:
    """Returns the best setting, and its value: of equally good ones the likeliest, and of these the first.

    Args:
        tasks: The tasks with the scores of their items.
        settings: The settings.
        by: See `FittedWeights`.

    Raises:
        EvaluationError: If answers are to be right, and a task has none.
    """
    bits = {s: sum(bits_a_byte(task, scores, s) for task, scores in tasks) / len(tasks) for s in settings}
    if by == "likelihood":
        found = min(settings, key=bits.__getitem__)
        return found, bits[found]
    without = [task.name for task, _ in tasks if not task.is_right_or_wrong]
    if without:
        raise EvaluationError(f"{' and '.join(without)} has texts without choices: fit by likelihood.")
    every = [rights(task, scores, {s.label: s for s in settings}) for task, scores in tasks]
    share = {s: sum(sum(one[s.label]) / len(one[s.label]) for one in every) / len(every) for s in settings}
    found = max(settings, key=lambda s: (share[s], -bits[s]))
    return found, share[found]


def fitted(
    tasks: Sequence[tuple[Task, Sequence[ChoiceScores]]], fusion: str, members: Sequence[str], main: str, by: By
) -> FittedWeights:
    """Returns the weights that are best on some tasks.

    Args:
        tasks: The tasks with the scores of their items, in all of `candidates`.
        fusion: The name of the strategy.
        members: The members' names.
        main: The name of the main member.
        by: See `FittedWeights`.

    Raises:
        EvaluationError: If answers are to be right, and a task has none.
    """
    settings = candidates(fusion, len(members))
    found, value = best(tasks, settings, by)
    _, equal_value = best(tasks, settings[:1], by)
    assert not isinstance(found.weights, str), "candidates have numbers"
    names = [task.name for task, _ in tasks]
    return FittedWeights(list(members), main, fusion, list(found.weights), by, names, value, equal_value)


def bits_a_byte(task: Task, scores: Sequence[ChoiceScores], setting: Setting) -> float:
    """Returns the mean over items of the bits that a byte of the right answer takes."""
    nats = [held.together[setting.label][item.answer] for item, held in zip(task.scored, scores, strict=True)]
    lengths = [held.bytes[item.answer] for item, held in zip(task.scored, scores, strict=True)]
    return -sum(n / length for n, length in zip(nats, lengths, strict=True)) / len(nats) / log(2)
