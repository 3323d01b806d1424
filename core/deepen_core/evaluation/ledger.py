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

Key = tuple[str, str, str]
"""The task's name, what answers, and the digest of the item."""


class Ledger:
    """Records of items, one line of JSON each, written as soon as they are known.

    Args:
        path: The file; None keeps records in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[Key, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            held = json.loads(line)
            key = (held.pop("task"), held.pop("by"), held.pop("item"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # a line that was being written when the process ended
        self._merge(key, held)

    def _merge(self, key: Key, record: Mapping[str, Any]) -> None:
        known = self._known.setdefault(key, {})
        for name, value in record.items():
            both = isinstance(value, dict) and isinstance(known.get(name), dict)
            known[name] = known[name] | value if both else value

    def get(self, key: Key) -> dict[str, Any] | None:
        """Returns what is known of an item."""
        return self._known.get(key)

    def add(self, key: Key, record: Mapping[str, Any]) -> None:
        """Adds an item, or more about one: mappings in its record are joined."""
        self._merge(key, record)
        if self._path is not None:
            task, by, item = key
            line = json.dumps({"task": task, "by": by, "item": item, **record}, ensure_ascii=False)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")  # a line of its own even after one that was cut off


def open_folder(folder: Path, facts: Mapping[str, Any]) -> None:
    """Creates the folder of an evaluation, or checks that it is one of the same.

    Args:
        folder: The folder.
        facts: What all records in it have in common, such as the members.

    Raises:
        EvaluationError: If it holds records with other facts, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise EvaluationError(f"The output folder {folder} cannot be made: {problem}") from problem
    place = folder / "run.json"
    try:
        held = json.loads(place.read_text(encoding="utf-8")) if place.exists() else None
    except (OSError, ValueError) as problem:
        raise EvaluationError(f"{place} cannot be read ({problem}): give another output folder.") from problem
    if held is not None:
        different = [name for name in facts if held.get(name) != facts[name]]
        if different:
            told = "; ".join(f"{name} was {held.get(name)} and is {facts[name]}" for name in different)
            raise EvaluationError(f"{folder} holds another evaluation ({told}): give another output folder.")
    part = place.with_suffix(".part")
    try:
        part.write_text(json.dumps(dict(facts), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(place)
    except OSError as problem:
        raise EvaluationError(f"The output folder {folder} cannot be written: {problem}") from problem


def digest(item: Item) -> str:
    """Returns what tells an item from all others."""
    fields = list(asdict(item).values())
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
