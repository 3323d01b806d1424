"""What an evaluation has measured so far, in a folder, so that it goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepen_core.errors import EvaluationError
from deepen_core.evaluation.items import Item
from deepen_core.evaluation.likelihood import ChoiceScores

Key = tuple[str, str, str]
"""The task's name, the main member's name, and the digest of the item."""


class Ledger:
    """Scores of items, one line of JSON each, written as soon as they are known.

    Args:
        folder: The folder, created if it is not there; None keeps scores in memory only.
        facts: What all scores in a folder have in common, such as the members.

    Raises:
        EvaluationError: If the folder holds scores with other facts, or cannot be written.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any]) -> None:
        self._place = None if folder is None else folder / "scores.jsonl"
        self._known: dict[Key, ChoiceScores] = {}
        if folder is None or self._place is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise EvaluationError(f"The output folder {folder} cannot be made: {problem}") from problem
        self._check_facts(folder / "run.json", facts)
        if self._place.exists():
            for line in self._place.read_text(encoding="utf-8").split("\n"):
                self._read(line)

    def _check_facts(self, place: Path, facts: Mapping[str, Any]) -> None:
        if place.exists():
            held = json.loads(place.read_text(encoding="utf-8"))
            different = [name for name in facts if held.get(name) != facts[name]]
            if different:
                told = "; ".join(f"{name} was {held.get(name)} and is {facts[name]}" for name in different)
                raise EvaluationError(f"{place.parent} holds another evaluation ({told}): give another output folder.")
        part = place.with_suffix(".part")
        part.write_text(json.dumps(dict(facts), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(place)

    def _read(self, line: str) -> None:
        try:
            held = json.loads(line)
            key = (held["task"], held["main"], held["item"])
            scores = ChoiceScores(held["bytes"], held["alone"], held["together"], held.get("asked", {}))
        except (ValueError, KeyError, TypeError):
            return  # the end of a line that was being written when the process ended
        self._merge(key, scores)

    def _merge(self, key: Key, scores: ChoiceScores) -> None:
        before = self._known.get(key)
        if before is not None:
            together, asked = before.together | scores.together, before.asked | scores.asked
            scores = ChoiceScores(scores.bytes, scores.alone, together, asked)
        self._known[key] = scores

    def get(self, key: Key) -> ChoiceScores | None:
        """Returns what is known of an item."""
        return self._known.get(key)

    def add(self, key: Key, scores: ChoiceScores) -> None:
        """Adds an item, or further settings of one."""
        self._merge(key, scores)
        if self._place is not None:
            task, main, item = key
            line = json.dumps({"task": task, "main": main, "item": item, **asdict(scores)}, ensure_ascii=False)
            with self._place.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")  # a line of its own even after one that was cut off


def digest(item: Item) -> str:
    """Returns what tells an item from all others."""
    fields = list(asdict(item).values())
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
