"""The table of an evaluation: how many items each setting answers right, and which setting is worth running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepen_core.evaluation.statistics import Difference, paired_difference


@dataclass(frozen=True)
class Row:
    """A way to answer.

    Attributes:
        label: Its name.
        main: The name of the main member; empty for a member alone and for votes.
        shares: For each task, the share of items that are answered right.
        mean: The mean of these.
        difference: How much better it is than the best member, with its 95 % interval; None for that member.
        options: What to give to the commands for it, if it is a setting of the ensemble.
    """

    label: str
    main: str
    shares: dict[str, float]
    mean: float
    difference: Difference | None
    options: str = ""


@dataclass(frozen=True)
class Summary:
    """All rows, best first.

    Attributes:
        items: Number of items of each task.
        rows: The rows.
        best_member: The row of the best member alone.
        recommended: The best row that is better than that member, by an interval above zero; None if there is none.
    """

    items: dict[str, int]
    rows: list[Row]
    best_member: Row
    recommended: Row | None

    @property
    def advice(self) -> str:
        """What to run, in one sentence."""
        best = self.best_member
        if self.recommended is None:
            return f"Run {best.label}: no setting is better than it beyond chance."
        row, off = self.recommended, self.recommended.difference
        assert off is not None, "only the best member has none"
        main = f" with main {row.main}" if row.main else ""
        options = f" Options: {row.options}" if row.options else ""
        return (
            f"Run {row.label}{main}: {100 * off.mean:+.1f} points against {best.label} "
            f"(95 % interval {100 * off.low:+.1f} to {100 * off.high:+.1f}).{options}"
        )


def summarised(
    members: Mapping[str, Mapping[str, Sequence[float]]],
    settings: Mapping[tuple[str, str], Mapping[str, Sequence[float]]],
    options: Mapping[tuple[str, str], str] | None = None,
) -> Summary:
    """Summarises an evaluation.

    Args:
        members: For each member alone, by its label, and each task: 1 or 0 for each item.
        settings: The same for all other ways to answer, by label and main member.
        options: What asks the commands for these, of those that are settings of the ensemble.
    """
    means = {label: _mean(tasks) for label, tasks in members.items()}
    best = max(means, key=means.__getitem__)

    def row(label: str, main: str, tasks: Mapping[str, Sequence[float]]) -> Row:
        shares = {task: sum(found) / len(found) for task, found in tasks.items()}
        off = None if (label, main) == (best, "") else paired_difference(tasks, members[best])
        return Row(label, main, shares, _mean(tasks), off, (options or {}).get((label, main), ""))

    rows = [row(label, "", tasks) for label, tasks in members.items()]
    best_member = next(one for one in rows if one.label == best)
    others = [row(label, main, tasks) for (label, main), tasks in settings.items()]
    rows = sorted([*rows, *others], key=lambda one: -one.mean)
    better = [one for one in others if one.difference is not None and one.difference.low > 0]
    items = {task: len(found) for task, found in members[best].items()}
    return Summary(items, rows, best_member, max(better, key=lambda one: one.mean, default=None))


def _mean(tasks: Mapping[str, Sequence[float]]) -> float:
    return sum(sum(found) / len(found) for found in tasks.values()) / len(tasks)
