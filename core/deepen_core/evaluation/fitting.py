"""Weights that are fitted on examples, by how many are answered right, or by how likely the right answers become."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from math import log

from deepen_core.errors import EvaluationError
from deepen_core.evaluation.fitted_weights import By, FittedPolicy, FittedWeights, weights_text
from deepen_core.evaluation.items import RightAnswer, ScoredItem, Task
from deepen_core.evaluation.judged_task import JudgedTask
from deepen_core.evaluation.likelihood import ChoiceScores, chosen
from deepen_core.evaluation.settings import Setting, equal, grid_of_shares, grid_of_weights, policy_for
from deepen_core.evaluation.statistics import is_within_error, mean_of_tasks
from deepen_core.fusion.weights import policy_and_shares

Scored = tuple[Task, Sequence[ChoiceScores]]
"""A task with the scores of its items."""
_PARTS = {2: 10, 3: 5}
"""Number of parts that one is divided into, by the number of members."""
_STEPS = {2: 6, 3: 3, 4: 2}
"""Number of steps from equal shares to the most unequal ones, by the number of members."""
_FAITHFUL = 0.5
"""Right answers are read if greedy decoding writes at least this share of those that the best member finds alone."""


def candidates(fusion: str, members: int, policy: FittedPolicy = "static") -> list[Setting]:
    """Returns the settings that weights are chosen from, those with equal weights or shares first.

    Args:
        fusion: The name of the strategy.
        members: Number of members.
        policy: Of the settings.
    """
    same = equal(members)
    if policy == "static":
        grid = [same, *grid_of_weights(members, _PARTS.get(members, 4))]
    else:
        grid = grid_of_shares(members, _STEPS.get(members, 1))
    return [_setting(fusion, policy, weights) for weights in dict.fromkeys(grid)]


def _setting(fusion: str, policy: FittedPolicy, weights: tuple[float, ...]) -> Setting:
    if policy == "static":
        return Setting(fusion, weights)
    return Setting(fusion, policy if weights == equal(len(weights)) else f"{policy}:{weights_text(weights)}")


def simple(fusion: str, members: int) -> list[Setting]:
    """Returns a few settings that tell whether right answers are written: equal weights, and most on each member.

    Args:
        fusion: The name of the strategy.
        members: Number of members.
    """
    static = candidates(fusion, members)
    return list(dict.fromkeys([static[0], *(max(static, key=lambda s: s.weights[n]) for n in range(members))]))


def compared(fusion: str, members: int, policies: Collection[FittedPolicy]) -> list[Setting]:
    """Returns all settings whose scores `fitted` needs: static ones too, whatever is fitted.

    Args:
        fusion: The name of the strategy.
        members: Number of members.
        policies: For which weights are fitted.
    """
    every: dict[FittedPolicy, None] = dict.fromkeys(["static", *policies])
    return [setting for policy in every for setting in candidates(fusion, members, policy)]


def best(
    tasks: Sequence[Scored], settings: Sequence[Setting], by: By, judged: Sequence[JudgedTask] = ()
) -> tuple[Setting, float]:
    """Returns the best setting, and its value: of equally good ones the likeliest, and of these the first.

    Args:
        tasks: The tasks with the scores of their items.
        settings: The settings, whose weights are numbers or follow the prompt.
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
    share = {s: mean_of_tasks([*_values(tasks, s.label, by), *_judged_values(judged, s)]) for s in settings}
    found = max(settings, key=lambda s: (share[s], -bits[s]))
    return found, share[found]


def fitted(
    tasks: Sequence[Scored],
    fusion: str,
    members: Sequence[str],
    main: str,
    by: By,
    judge: Callable[[int], JudgedTask] | None = None,
    policy: FittedPolicy = "static",
) -> FittedWeights:
    """Returns the simplest weights that are not worse on some tasks than the best ones beyond chance.

    The best of a grid on few items is best by chance. So main alone is taken, or else equal weights, if the best
    weights are better by at most one standard error, paired by item: the rule of one standard error (Breiman et al.
    1984, section 3.4.3). Equal shares of a policy are preferred in the same way. If the static weights found so are
    better than the shares found so by more than one standard error, they are returned instead.

    Args:
        tasks: The tasks with the scores of their items in all of `compared`, or with no scores if they count by what
            members answer alone, such as exercises.
        fusion: The name of the strategy.
        members: The members' names.
        main: The name of the main member.
        by: See `FittedWeights`.
        judge: Finds how members answer the task of some number alone, where reading right answers tells too little.
            Without it, such tasks count as never answered right, and all must have scores.
        policy: What to fit: static weights, or the shares of a policy.

    Raises:
        EvaluationError: If answers are to be right, and a task has none.
    """
    only = Setting(fusion, tuple(float(name == main) for name in members))
    labels = {setting: setting.label for setting in compared(fusion, len(members), [policy])} | {only: main}
    read, judged = tasks, list[JudgedTask]()
    if by == "score" and judge is not None:
        own = [answered_alone(*one, labels.values(), partial(judge, number)) for number, one in enumerate(tasks)]
        read = [one for one, found in zip(tasks, own, strict=True) if found is None]
        judged = [found for found in own if found is not None]
    examples = _Examples(read, judged, by, labels)
    settings = candidates(fusion, len(members))
    chosen = static = examples.simplest(settings, only)
    alike, by_prompt = settings[0], None
    if policy != "static":
        settings = candidates(fusion, len(members), policy)
        following = examples.simplest(settings)
        if examples.is_clearly_better(static, following):
            by_prompt = examples.value(following)
        else:
            chosen, alike = following, settings[0]
    value, of_equal, alone = map(examples.value, (chosen, alike, only))
    weights, names = _numbers(chosen, len(members)), [task.name for task, _ in tasks]
    kind: FittedPolicy = "static" if chosen == static else policy
    return FittedWeights(list(members), main, fusion, weights, by, names, value, of_equal, alone, kind, by_prompt)


class _Examples:
    """What some examples come to in different settings.

    Args:
        read: Tasks with the scores of their items.
        judged: Tasks that count by the members' own answers.
        by: See `FittedWeights`.
        labels: Of all settings in the scores.
    """

    def __init__(
        self, read: Sequence[Scored], judged: Sequence[JudgedTask], by: By, labels: Mapping[Setting, str]
    ) -> None:
        self._read = read
        self._judged = judged
        self._by: By = by
        self._labels = labels
        self._found: dict[Setting, list[list[float]]] = {}

    def simplest(self, settings: Sequence[Setting], *before: Setting) -> Setting:
        """Returns the first setting that is not worse beyond chance than the best one, or else that.

        Args:
            settings: The settings, of which only the first one is simple.
            before: Simpler ones.
        """
        found, _ = best(self._read, settings, self._by, self._judged)
        order = [*before, settings[0], found]
        most = max(map(self._values, order), key=mean_of_tasks)
        return next(setting for setting in order if is_within_error(most, self._values(setting)))

    def is_clearly_better(self, one: Setting, other: Setting) -> bool:
        """Whether one setting is better than another one beyond chance."""
        return not is_within_error(self._values(one), self._values(other))

    def value(self, setting: Setting) -> float:
        """Returns the share of right answers, or the bits a byte of them."""
        mean = mean_of_tasks(self._values(setting))
        return mean if self._by == "score" else -mean

    def _values(self, setting: Setting) -> list[list[float]]:
        if setting not in self._found:
            judged = _judged_values(self._judged, setting)
            self._found[setting] = [*_values(self._read, self._labels[setting], self._by), *judged]
        return self._found[setting]


def _numbers(setting: Setting, members: int) -> list[float]:
    """Returns the weights of a setting, or the shares that its policy starts from."""
    if not isinstance(setting.weights, str):
        return list(setting.weights)
    shares = policy_and_shares(setting.weights)[1]
    return list(equal(members)) if shares is None else [share / sum(shares) for share in shares]


def answered_alone(
    task: Task, scores: Sequence[ChoiceScores], labels: Collection[str], judge: Callable[[], JudgedTask]
) -> JudgedTask | None:
    """Returns how members answer a task alone if that tells more than reading right answers, or else None.

    Greedy decoding may hardly ever write just the right answer, above all one in steps: then most answers that are
    right in other words would count as wrong.

    Args:
        task: The task.
        scores: Of its items, with what greedy decoding would write.
        labels: Of settings, and the name of the main member for it alone: of which the best one counts.
        judge: Finds how members answer it.
    """
    if any(not isinstance(item, RightAnswer) for item in task.scored):
        return None
    written = max((sum(held.greedy[label] for held in scores) for label in labels), default=0) if scores else 0
    if written and written >= _FAITHFUL * len(scores):
        return None
    found = judge()
    right = float(found.rights.sum(0).max())  # of the best member
    return None if written and written >= _FAITHFUL * right else found


def _judged_values(judged: Sequence[JudgedTask], setting: Setting) -> list[list[float]]:
    return [task.values(policy_for(setting, task.rights.shape[1])) for task in judged]


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
