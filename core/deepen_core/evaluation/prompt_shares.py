"""Shares of members whose weights follow the prompt, fitted by which members answer such prompts right alone.

Members need not be equally good where they find prompts equally likely: a specialist may answer better than its
likelihoods tell. The shares make up for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from deepen_core.evaluation.fitting import FittedWeights
from deepen_core.evaluation.judged_task import JudgedTask
from deepen_core.evaluation.settings import equal
from deepen_core.evaluation.statistics import is_within_error, mean_of_tasks
from deepen_core.fusion.policies import PerplexityWeights

POLICY: Literal["perplexity"] = "perplexity"
_STEPS = {2: 12, 3: 6}
"""Number of steps in which a member's share grows from that of another one to a thousand times as much."""
_LARGEST = 3.0  # powers of ten


def fitted_shares(tasks: Sequence[JudgedTask], fusion: str, members: Sequence[str], main: str) -> FittedWeights:
    """Returns the shares with which the members that answer right have most weight, in the mean of some tasks.

    Equal shares are taken unless others are better by more than one standard error, paired by item, as in
    `fitting.fitted`.

    Args:
        tasks: The tasks.
        fusion: The name of the strategy.
        members: The members' names.
        main: The name of the main member.
    """
    grid = candidates(len(members))
    found = {shares: [task.values(PerplexityWeights(shares)) for task in tasks] for shares in grid}
    best = max(grid, key=lambda shares: mean_of_tasks(found[shares]))
    shares = equal(len(members))
    if not is_within_error(found[best], found[shares]):
        shares = best
    alone = mean_of_tasks([task.rights[:, members.index(main)].tolist() for task in tasks])
    names = [task.name for task in tasks]
    value, equal_value = mean_of_tasks(found[shares]), mean_of_tasks(found[equal(len(members))])
    return FittedWeights(list(members), main, fusion, list(shares), "score", names, value, equal_value, alone, POLICY)


def candidates(members: int) -> list[tuple[float, ...]]:
    """Returns the shares to choose from, equal ones first: each is up to a thousand times as much as another one."""
    steps = _STEPS.get(members, 3)
    counts = [count for count in itertools.product(range(steps + 1), repeat=members) if min(count) == 0]
    raised = [[10 ** (_LARGEST * number / steps) for number in count] for count in counts]
    return [tuple(value / sum(values) for value in values) for values in raised]
