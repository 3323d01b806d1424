"""Tasks, read from files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepen_core.errors import EvaluationError
from deepen_core.evaluation.items import ChoiceItem, CodeItem, Item, OpenItem, Task, TextItem, TranslationItem

_EXAMPLE = 'An item is an object such as {"question": "What is wet?", "choices": ["water", "sand"], "answer": 0}.'


def read_task(path: str | Path, limit: int | None = None) -> Task:
    """Reads a task.

    Each line is a JSON object, and all are of one kind:

    - with `question`, `choices` (a list of texts) and `answer` (the number of the right one, from 0),
    - with `question` and `answers`, all ways to write the right answer; with `solution` too, they are numbers,
    - with `prompt`, `test` and `entry_point`: the beginning of a function in Python, a program that defines
      `check(candidate)`, and the function's name,
    - with `source` and `translation`, a text to translate, judged by chrF,
    - with `prompt` and `text`, a text that should be likely after the prompt.

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
    if len({(type(item), bool(getattr(item, "solution", ""))) for item in items}) > 1:
        raise EvaluationError(f"{path} has items of several kinds: give them in a file for each.")
    return Task(path.stem, items)


def _item(path: Path, number: int, line: str) -> Item:
    try:
        found = json.loads(line)
    except ValueError as problem:
        raise EvaluationError(f"{path}, line {number}: it is not JSON ({problem}).") from problem
    if not isinstance(found, Mapping):
        raise EvaluationError(f"{path}, line {number}: it is a {type(found).__name__}, not an object.")
    read = next(read for name, read in _KINDS.items() if name in found or not name)
    try:
        return read(found)
    except _WrongError as wrong:
        raise EvaluationError(f"{path}, line {number}: {wrong}. {_EXAMPLE}") from wrong


class _WrongError(Exception):
    """Says what is wrong with an item."""


def _choice(found: Mapping[str, Any]) -> ChoiceItem:
    choices, answer = _texts(found, "choices", 2), found.get("answer")
    if "answer" not in found:
        raise _WrongError("it has no answer")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise _WrongError(f"its answer is {answer!r}, not a number from 0 to {len(choices) - 1}")
    return ChoiceItem(_text(found, "question"), choices, answer)


def _open(found: Mapping[str, Any]) -> OpenItem:
    solution = _text(found, "solution") if "solution" in found else ""
    answers = _texts(found, "answers", 1)
    if solution and not all(any(c.isdigit() for c in answer) for answer in answers):
        raise _WrongError("its answers are not numbers, though it has a solution")
    return OpenItem(_text(found, "question"), answers, solution)


def _code(found: Mapping[str, Any]) -> CodeItem:
    return CodeItem(_text(found, "prompt"), _text(found, "test"), _text(found, "entry_point"))


def _translation(found: Mapping[str, Any]) -> TranslationItem:
    source, translation = _text(found, "source"), _text(found, "translation")
    if not source or not translation:
        raise _WrongError("its source or its translation is empty")
    return TranslationItem(source, translation)


def _given(found: Mapping[str, Any]) -> TextItem:
    text = _text(found, "text")
    if not text:
        raise _WrongError("its text is empty")
    return TextItem(_text(found, "prompt"), text)


def _nothing(found: Mapping[str, Any]) -> Item:
    raise _WrongError(f"it has {' and '.join(found) or 'nothing'}, but no choices, answers, test, translation or text")


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise _WrongError(f"its {name} is not a text" if name in found else f"it has no {name}")
    return value


def _texts(found: Mapping[str, Any], name: str, least: int) -> tuple[str, ...]:
    values = found[name]
    if not isinstance(values, list) or len(values) < least or not all(isinstance(v, str) and v for v in values):
        raise _WrongError(f"its {name} are not a list of at least {'two texts' if least == 2 else 'one text'}")
    return tuple(values)


_KINDS: dict[str, Callable[[Mapping[str, Any]], Item]] = {
    "choices": _choice,
    "answers": _open,
    "test": _code,
    "translation": _translation,
    "text": _given,
    "": _nothing,
}
"""How an item is read that has a field of this name; the first one counts."""
