"""Weights that are fitted on examples, by how many are answered right, or by how likely the right answers become."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Literal

from typing_extensions import Self

from deepen_core.errors import EvaluationError
from deepen_core.evaluation.items import RightAnswer, ScoredItem, Task
from deepen_core.evaluation.judged_task import JudgedTask
from deepen_core.evaluation.likelihood import ChoiceScores, chosen
from deepen_core.evaluation.settings import Setting, equal, grid_of_weights
from deepen_core.evaluation.statistics import is_within_error, mean_of_tasks
from deepen_core.fusion.policies import StaticWeights

By = Literal["score", "likelihood"]
FittedPolicy = Literal["static", "perplexity"]
Scored = tuple[Task, Sequence[ChoiceScores]]
"""A task with the scores of its items."""
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
        by: What was best: "score", the share of right answers, or "likelihood", the bits a byte of right answers. Open
            questions are answered right if greedy decoding writes just the answer given, for which it is read and
            nothing generated. Where that is so for no item with any weights, as of long answers, and for exercises,
            the share is the mean of those of the members alone, by their weights.
        tasks: Names of the tasks.
        value: What it came to: a share, or bits.
        equal_value: What equal weights come to.
        alone_value: What main alone comes to.
        policy: "static", or "perplexity": the weights are the shares that this policy starts from, for any strategy and
            main member, and the values are those of the members' own answers, weighed by it.
    """

    members: list[str]
    main: str
    fusion: str
    weights: list[float]
    by: By
    tasks: list[str]
    value: float
    equal_value: float
    alone_value: float
    policy: FittedPolicy = "static"

    @property
    def option(self) -> list[float] | str:
        """What to give to `Ensemble.load` as `weights`: numbers, or the policy with its shares."""
        return self.weights if self.policy == "static" else f"{self.policy}:{self.text}"

    @property
    def text(self) -> str:
        """The weights as one text, such as "0.7,0.3"."""
        return ",".join(f"{weight:.4g}" for weight in self.weights)

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
    tasks: Sequence[Scored], settings: Sequence[Setting], by: By, judged: Sequence[JudgedTask] = ()
) -> tuple[Setting, float]:
    """Returns the best setting, and its value: of equally good ones the likeliest, and of these the first.

    Args:
        tasks: The tasks with the scores of their items.
        settings: The settings, with numbers as weights.
        by: See `FittedWeights`.
        judged: Tasks that count by the members' own answers.

    Raises:
        EvaluationError: If answers are to be right, and a task has none.
    """
    _check(tasks, by)
    bits = {s: sum(bits_a_byte(task, scores, s) for task, scores in tasks) / max(1, len(tasks)) for s in settings}
    if by == "likelihood":
        found = min(settings, key=bits.__getitem__)
        return found, bits[found]
    share = {s: mean_of_tasks([*_values(tasks, s.label, by), *_judged_values(judged, s.weights)]) for s in settings}
    found = max(settings, key=lambda s: (share[s], -bits[s]))
    return found, share[found]


def fitted(
    tasks: Sequence[Scored],
    fusion: str,
    members: Sequence[str],
    main: str,
    by: By,
    judge: Callable[[Task], JudgedTask] | None = None,
) -> FittedWeights:
    """Returns the simplest weights that are not worse on some tasks than the best ones beyond chance.

    The best of a grid on few items is best by chance. So main alone is taken, or else equal weights, if the best
    weights are better by at most one standard error, paired by item: the rule of one standard error (Breiman et al.
    1984, section 3.4.3). Where no answer is right with any weights, they are fitted by likelihood.

    Args:
        tasks: The tasks with the scores of their items, in all of `candidates`; exercises have no scores.
        fusion: The name of the strategy.
        members: The members' names.
        main: The name of the main member.
        by: See `FittedWeights`.
        judge: Finds how members answer a task alone, where reading right answers tells nothing. Without it, such tasks
            count as never answered right, and there must be no exercises.

    Raises:
        EvaluationError: If answers are to be right, and a task has none.
    """
    settings = candidates(fusion, len(members))
    readable = [pair for pair in tasks if pair[0].scored]
    read, judged = readable, list[JudgedTask]()
    if by == "score" and judge is not None:
        labels = {main, *(setting.label for setting in settings)}
        is_told = [_is_told(*pair, labels) for pair in tasks]
        read = [pair for pair, told in zip(tasks, is_told, strict=True) if told]
        judged = [judge(task) for (task, _), told in zip(tasks, is_told, strict=True) if not told]
    found, _ = best(read, settings, by, judged)
    assert not isinstance(found.weights, str), "candidates have numbers"
    only, shares = tuple(float(name == main) for name in members), equal(len(members))
    labels_of = {only: main}
    if len(members) > 1:
        labels_of |= {shares: settings[0].label, found.weights: found.label}
    ways = {given: [*_values(read, label, by), *_judged_values(judged, given)] for given, label in labels_of.items()}
    most = max(ways.values(), key=mean_of_tasks)
    if by == "score" and readable and not mean_of_tasks(most):  # which tells nothing
        return fitted(readable, fusion, members, main, "likelihood")
    weights = next(given for given, of_tasks in ways.items() if is_within_error(most, of_tasks))
    sign = 1 if by == "score" else -1
    names = [task.name for task, _ in tasks]
    value, of_equal, alone = (sign * mean_of_tasks(ways[way]) for way in (weights, shares, only))
    return FittedWeights(list(members), main, fusion, list(weights), by, names, value, of_equal, alone)


def _is_told(task: Task, scores: Sequence[ChoiceScores], labels: Collection[str]) -> bool:
    """Whether reading the items of a task tells which answers are right, in any of some ways."""
    if any(not isinstance(item, RightAnswer) for item in task.scored):
        return True
    return any(held.greedy[label] for held in scores for label in labels)


def _judged_values(judged: Sequence[JudgedTask], weights: Sequence[float] | str) -> list[list[float]]:
    assert not isinstance(weights, str), "candidates have numbers"
    return [task.values(StaticWeights(weights)) for task in judged]


def _check(tasks: Sequence[Scored], by: By) -> None:
    if by == "score" and (without := [task.name for task, _ in tasks if not task.is_right_or_wrong]):
        raise EvaluationError(f"{' and '.join(without)} has texts without choices: fit by likelihood.")


def _values(tasks: Sequence[Scored], label: str, by: By) -> list[list[float]]:
    """Returns for each item of each task whether it is answered right, or the negative bits a byte of its answer.

    Args:
        tasks: As for `best`.
        label: Of a setting, or the name of the main member alone.
        by: See `FittedWeights`.
    """
    value = _is_right if by == "score" else _bits
    return [
        [value(item, held, label) for item, held in zip(task.scored, scores, strict=True)] for task, scores in tasks
    ]


def _nats(held: ChoiceScores, label: str) -> list[float]:
    return held.together[label] if label in held.together else held.alone[label]


def _is_right(item: ScoredItem, held: ChoiceScores, label: str) -> float:
    if isinstance(item, RightAnswer):
        return float(held.greedy[label])
    return float(chosen(_nats(held, label), held.bytes) == item.answer)


def _bits(item: ScoredItem, held: ChoiceScores, label: str) -> float:
    return _nats(held, label)[item.answer] / held.bytes[item.answer] / log(2)


def bits_a_byte(task: Task, scores: Sequence[ChoiceScores], setting: Setting) -> float:
    """Returns the mean over items of the bits that a byte of the right answer takes."""
    [values] = _values([(task, scores)], setting.label, "likelihood")
    return -sum(values) / len(values)
