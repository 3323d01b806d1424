"""Open questions that are answered by the majority of sampled answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from deepen_core.engine.scoring import TextReader
from deepen_core.evaluation.evaluation import Evaluation
from deepen_core.evaluation.generation import Samples
from deepen_core.evaluation.items import OpenItem, Task
from deepen_core.evaluation.judging import is_right
from deepen_core.evaluation.settings import Setting, Settings
from deepen_core.voting import majority_vote

Way = tuple[str, str]
"""A way to answer: its label, and the name of the main member; empty for a member alone and for votes."""
TaskRights = Mapping[str, Sequence[float]]
"""For each task by its name, 1 or 0 for each item."""


class Votes:
    """Samples answers, and finds out whether their majorities are right.

    Args:
        evaluation: Generates and keeps the samples.
        count: How many samples of each source vote; with 0, nothing is sampled.
        temperature: At which they are sampled.
    """

    def __init__(self, evaluation: Evaluation, count: int, temperature: float) -> None:
        self._evaluation = evaluation
        self._count = count
        self._temperature = temperature
        self._rights: dict[Way, dict[str, list[float]]] = {}
        self._alone: dict[str, tuple[Task, list[list[Samples]]]] = {}

    def add(self, way: Way, reader: TextReader, task: Task, setting: Setting, settings: Settings, by: str) -> None:
        """Has a source answer a task by votes, if it has open questions.

        Args:
            way: The way to answer without votes.
            reader: See `Evaluation.samples`, as the other arguments.
            task: The task.
            setting: The setting.
            settings: Has its strategy.
            by: What answers.

        Raises:
            DeepenError: As from `Evaluation.samples`.
        """
        if not self._count or not task.open:
            return
        samples = self._evaluation.samples(
            reader, task, setting, settings, by, seeds=range(self._count), temperature=self._temperature
        )
        self._rights.setdefault(way, {})[task.name] = self._majorities(task, [samples])
        _, main = way
        if not main:
            self._alone.setdefault(task.name, (task, []))[1].append(samples)

    def of_members(self) -> dict[str, list[float]]:
        """Returns for each task whether the samples of all members together, each alone, have a right majority."""
        return {name: self._majorities(task, samples) for name, (task, samples) in self._alone.items()}

    def rows(self, others: Mapping[Way, TaskRights]) -> dict[Way, TaskRights]:
        """Returns the ways to answer with votes; tasks that cannot be voted on are answered as without.

        Args:
            others: All ways to answer without votes.
        """
        return {self._voting(way): {**others[way], **rights} for way, rights in self._rights.items()}

    def options(self, others: Mapping[Way, str]) -> dict[Way, str]:
        """Returns what asks the commands for the settings with votes.

        Args:
            others: What asks them for the settings without.
        """
        votes = f"--votes {self._count} --temperature {self._temperature:g}"
        return {self._voting(way): f"{others[way]} {votes}" for way in self._rights if way in others}

    def _voting(self, way: Way) -> Way:
        label, main = way
        return f"{label}, {self._count} votes", main

    def _majorities(self, task: Task, sources: Sequence[Sequence[Samples]]) -> list[float]:
        each = zip(task.open, zip(*sources, strict=True), strict=True)
        return [float(self._is_right(item, samples)) for item, samples in each]

    def _is_right(self, item: OpenItem, sources: Sequence[Samples]) -> bool:
        """Returns whether a majority is right, by last numbers for an item with a solution, else by short texts.

        Ties are broken by how likely answers are to what gave them.
        """
        seeds = [str(seed) for seed in range(self._count)]  # a folder may hold more
        known = {one.texts[seed]: one.nats[seed] if one.texts[seed] else -inf for one in sources for seed in seeds}
        texts = [one.texts[seed] for one in sources for seed in seeds]
        extract = "number" if item.solution else "short"
        found = majority_vote(texts, extract=extract, likelihood=lambda different: [known[text] for text in different])
        return is_right(item, found.text, chat=self._evaluation.chat)
