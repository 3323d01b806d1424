"""Whether an answer is right."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from deepen_core.evaluation.code_run import passes
from deepen_core.evaluation.items import AnsweredItem, CodeItem

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"(?:(?<!\w)-)?\d[\d,]*(?:\.\d+)?")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def is_right(item: AnsweredItem, text: str) -> bool:
    """Returns whether an answer to an item is right.

    Args:
        item: The item.
        text: The answer.
    """
    if isinstance(item, CodeItem):
        return passes(item.program(text))
    if item.solution:
        found = last_number(text)
        return found is not None and found in [last_number(answer) for answer in item.answers]
    return says_one_of(text, item.answers)


def says_one_of(text: str, answers: Sequence[str]) -> bool:
    """Returns whether a text is one of some answers, but for case, punctuation, articles and blanks (as in SQuAD)."""
    said = plain(text)
    if said:
        return said in {plain(answer) for answer in answers}
    return text.strip().casefold() in {answer.strip().casefold() for answer in answers}  # nothing but punctuation


def plain(text: str) -> str:
    """Returns a text in lower case without punctuation, articles and superfluous blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def last_number(text: str) -> float | None:
    """Returns the last number in a text; None if there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
