"""An evaluation: tasks, settings and mains, and what was found so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from deepen_core.engine.engine import Engine
from deepen_core.evaluation.items import Task
from deepen_core.evaluation.ledger import Ledger, digest
from deepen_core.evaluation.likelihood import ChoiceScores, chosen, score_items, voted
from deepen_core.evaluation.settings import Setting, Settings

Scores = dict[str, dict[str, list[float]]]
"""For each way to answer by its label, and each task by its name, the score of each item."""


class Evaluation:
    """Measures settings on tasks.

    Args:
        folder: Keeps what is measured; an evaluation in the same folder goes on from there. None keeps nothing.
        facts: What must be the same for all that is in the folder.
        progress: Shows a bar.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any], *, progress: bool) -> None:
        self._ledger = Ledger(folder, facts)
        self._progress = progress

    def measure(self, engine: Engine, task: Task, settings: Sequence[Setting]) -> list[ChoiceScores]:
        """Measures a task in some settings, with the main member of an engine.

        Args:
            engine: The engine.
            task: The task.
            settings: The settings.

        Raises:
            ContextWindowError: If an item is longer than a member's window.
            MemberError: If a member fails.
        """
        main = engine.main_member.name
        keys = [(task.name, main, digest(item)) for item in task.items]
        labels = {setting.label for setting in settings}
        missing = []
        for place, key in enumerate(keys):
            held = self._ledger.get(key)
            if held is None or not labels <= held.together.keys():
                missing.append(place)
        if missing:
            built = Settings(engine.members, engine.main, settings)
            found = score_items(engine, [task.items[place] for place in missing], built)
            shown = tqdm(
                missing, desc=f"{task.name}, main {main}", unit="item", disable=None if self._progress else True
            )
            for place in shown:
                self._ledger.add(keys[place], next(found))
        return [held for key in keys if (held := self._ledger.get(key)) is not None]


def accuracies(task: Task, scores: Sequence[ChoiceScores], settings: Sequence[Setting]) -> dict[str, list[float]]:
    """Returns whether each item is answered right: by each member, by their vote, and in each setting, by its label.

    Args:
        task: The task.
        scores: Of its items.
        settings: The settings.
    """
    found: dict[str, list[float]] = {}

    def add(label: str, nats: Sequence[float], lengths: Sequence[int], answer: int) -> None:
        found.setdefault(label, []).append(float(chosen(nats, lengths) == answer))

    for item, held in zip(task.items, scores, strict=True):
        for name, nats in held.alone.items():
            add(f"{name} alone", nats, held.bytes, item.answer)
        add("vote", voted(held.alone, [1.0] * len(held.alone)), held.bytes, item.answer)
        for setting in settings:
            add(setting.label, held.together[setting.label], held.bytes, item.answer)
    return found
