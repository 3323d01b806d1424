"""Tasks: items that are read from files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen_core.chat.messages import Prompt
from deepen_core.errors import EvaluationError


@dataclass(frozen=True)
class ChoiceItem:
    """A question with given choices.

    Attributes:
        question: The question.
        choices: The choices.
        answer: The number of the right one.
    """

    question: str
    choices: tuple[str, ...]
    answer: int

    def asked(self, *, chat: bool) -> list[tuple[Prompt, str]]:
        """Returns the prompt before each text to score, and that text.

        Args:
            chat: Ask in a conversation rather than in plain text.
        """
        if chat:
            return [([{"role": "user", "content": self.question}], choice) for choice in self.choices]
        return [(f"Question: {self.question}\nAnswer:", f" {choice}") for choice in self.choices]


@dataclass(frozen=True)
class TextItem:
    """A text that should be likely after a prompt.

    Attributes:
        prompt: The text before it.
        text: The text.
    """

    prompt: str
    text: str

    choices = ("",)
    answer = 0

    def asked(self, *, chat: bool) -> list[tuple[Prompt, str]]:
        """See `ChoiceItem.asked`."""
        return [([{"role": "user", "content": self.prompt}] if chat else self.prompt, self.text)]


Item = ChoiceItem | TextItem


@dataclass(frozen=True)
class Task:
    """Some items of one kind.

    Attributes:
        name: The name of its file, without ending.
        items: The items.
    """

    name: str
    items: tuple[Item, ...]

    @property
    def has_choices(self) -> bool:
        """Whether its items can be answered right or wrong."""
        return all(isinstance(item, ChoiceItem) for item in self.items)


def read_task(path: str | Path, limit: int | None = None) -> Task:
    """Reads a task.

    Each line is a JSON object: with `question`, `choices` (a list of texts) and `answer` (the number of the right one,
    from 0), or with `prompt` and `text`, a text that should be likely after the prompt. All are of one kind.

    Args:
        path: The file.
        limit: At most so many items, the first ones.

    Raises:
        EvaluationError: If the file cannot be read, or a line is not an item.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise EvaluationError(f"{path} cannot be read: {problem}") from problem
    places = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    items = tuple(_item(path, number, line) for number, line in places[:limit])
    if not items:
        raise EvaluationError(f"{path} has no items: give a file with a JSON object in each line.")
    if len({type(item) for item in items}) > 1:
        raise EvaluationError(f"{path} has questions with choices and texts: give them in two files.")
    return Task(path.stem, items)


def _item(path: Path, number: int, line: str) -> Item:
    try:
        found = json.loads(line)
    except ValueError as problem:
        raise EvaluationError(f"{path}, line {number}: it is not JSON ({problem}).") from problem
    if not isinstance(found, Mapping):
        raise EvaluationError(f"{path}, line {number}: it is a {type(found).__name__}, not an object.")
    texts = [found.get("prompt"), found.get("text")]
    if all(isinstance(text, str) for text in texts) and found["text"]:
        return TextItem(found["prompt"], found["text"])
    wrong = _what_is_wrong(found)
    if wrong:
        raise EvaluationError(
            f"{path}, line {number}: {wrong}. An item is an object such as "
            '{"question": "What is wet?", "choices": ["water", "sand"], "answer": 0}.'
        )
    return ChoiceItem(found["question"], tuple(found["choices"]), found["answer"])


def _what_is_wrong(found: Mapping[str, Any]) -> str:
    missing = [name for name in ("question", "choices", "answer") if name not in found]
    if missing:
        return f"it has no {' and no '.join(missing)}"
    choices, answer = found["choices"], found["answer"]
    if not isinstance(found["question"], str):
        return "its question is not a text"
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        return "its choices are not a list of at least two texts"
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"its answer is {answer!r}, not a number from 0 to {len(choices) - 1}"
    return ""
