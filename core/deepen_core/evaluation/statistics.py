"""How sure a difference between two settings is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import variance

import numpy as np
from numpy.typing import NDArray

_SAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """The mean of a difference, and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_difference(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> Difference:
    """Returns how much better one setting is than another, as the mean over tasks of the mean over their items.

    By a paired bootstrap: items are drawn with replacement within each task, the same for both.

    Args:
        one: For each task, the score of each item.
        other: The same for the other setting, in the same order.
    """
    chosen = np.random.default_rng(0)
    total = np.zeros(_SAMPLES)
    mean = 0.0
    for task, scores in one.items():
        off: NDArray[np.float64] = np.asarray(scores, dtype=float) - np.asarray(other[task], dtype=float)
        values, counts = np.unique(off, return_counts=True)  # as a rule -1, 0 and 1
        drawn = chosen.multinomial(len(off), counts / len(off), size=_SAMPLES)  # [samples, values]
        total += drawn @ values / len(off)
        mean += float(off.mean())
    total /= len(one)
    low, high = np.quantile(total, [0.025, 0.975])
    return Difference(mean / len(one), float(low), float(high))


def mean_of_tasks(values: Sequence[Sequence[float]]) -> float:
    """Returns the mean over tasks of the means over their items."""
    return sum(sum(one) / len(one) for one in values) / len(values)


def is_within_error(better: Sequence[Sequence[float]], than: Sequence[Sequence[float]]) -> bool:
    """Whether one mean is better than another one by at most one standard error of their difference.

    Args:
        better: For each task, the values of its items.
        than: The same in another way, paired by item.
    """
    gains = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(better, than, strict=True)]
    squares = sum(variance(one) / len(one) for one in gains if len(one) > 1)
    return mean_of_tasks(gains) <= sqrt(squares) / len(gains)
