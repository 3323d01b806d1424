"""An evaluation: tasks, settings and mains, and what was found so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from deepen_core.engine.scoring import TextReader
from deepen_core.evaluation.items import Task
from deepen_core.evaluation.ledger import Ledger, digest
from deepen_core.evaluation.likelihood import ChoiceScores, chosen, score_items, voted
from deepen_core.evaluation.settings import Setting, Settings

VOTE = "vote"
"""The label of the choice that is likeliest by the sum of the members' own log-probabilities."""


class Evaluation:
    """Measures settings on tasks.

    Args:
        folder: Keeps what is measured; an evaluation in the same folder goes on from there. None keeps nothing.
        facts: What must be the same for all that is in the folder.
        chat: Ask in conversations rather than in plain text.
        progress: Show a bar.

    Raises:
        EvaluationError: If the folder holds another evaluation, or cannot be written.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any], *, chat: bool, progress: bool) -> None:
        self._ledger = Ledger(folder, {**facts, "chat": chat})
        self._chat = chat
        self._progress = progress

    def measure(self, reader: TextReader, task: Task, settings: Sequence[Setting]) -> list[ChoiceScores]:
        """Measures a task in some settings.

        Args:
            reader: Reads texts with the main member.
            task: The task.
            settings: The settings.

        Raises:
            ContextWindowError: If an item is longer than a member's window.
            MemberError: If a member fails.
        """
        main = reader.members[reader.main].name
        keys = [(task.name, main, digest(item)) for item in task.items]
        labels = {setting.label for setting in settings}
        missing = []
        for place, key in enumerate(keys):
            held = self._ledger.get(key)
            if held is None or not labels <= held.together.keys():
                missing.append(place)
        if missing:
            built = Settings(reader.members, reader.main, settings)
            found = score_items(reader, [task.items[place] for place in missing], built, chat=self._chat)
            shown = tqdm(
                missing, desc=f"{task.name}, main {main}", unit="item", disable=None if self._progress else True
            )
            for place in shown:
                self._ledger.add(keys[place], next(found))
        return [held for key in keys if (held := self._ledger.get(key)) is not None]


Rights = dict[str, list[float]]
"""For each way to answer, by its label: 1 or 0 for each item."""


def rights(task: Task, scores: Sequence[ChoiceScores], settings: Mapping[str, Setting]) -> Rights:
    """Returns whether each item is answered right in each setting.

    Args:
        task: The task, with choices.
        scores: Of its items.
        settings: The settings by their labels.
    """
    found: Rights = {label: [] for label in settings}
    for item, held in zip(task.items, scores, strict=True):
        for label, setting in settings.items():
            found[label].append(float(chosen(held.together[setting.label], held.bytes) == item.answer))
    return found


def rights_of_members(task: Task, scores: Sequence[ChoiceScores]) -> Rights:
    """Returns whether each item is answered right by each member alone, and by their vote.

    Args:
        task: The task, with choices.
        scores: Of its items.
    """
    found: Rights = {}
    for item, held in zip(task.items, scores, strict=True):
        nats = {alone_label(name): values for name, values in held.alone.items()}
        nats[VOTE] = voted(held.alone, [1.0] * len(held.alone))
        for label, values in nats.items():
            found.setdefault(label, []).append(float(chosen(values, held.bytes) == item.answer))
    return found


def alone_label(name: str) -> str:
    """Returns the label of a member that answers alone."""
    return f"{name} alone"
