"""Whether an answer is right."""

from __future__ import annotations

from collections.abc import Sequence

from deepen_core.evaluation.code_run import passes
from deepen_core.evaluation.items import AnsweredItem, CodeItem
from deepen_core.voting.extraction import last_number, plain


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
