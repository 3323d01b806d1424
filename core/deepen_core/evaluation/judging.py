"""How good an answer is."""

from __future__ import annotations

from collections.abc import Sequence

from deepen_core.evaluation.code_run import passes
from deepen_core.evaluation.items import AnsweredItem, CodeItem, OpenItem, TranslationItem
from deepen_core.voting.extraction import last_number, plain
from deepen_core.voting.risk import chrf


def mark(item: AnsweredItem, text: str) -> float:
    """Returns 1 for a right answer and 0 for a wrong one; for a translation its chrF, from 0 to 1.

    Args:
        item: The item.
        text: The answer.

    Raises:
        SamplingError: For a translation, if sacrebleu is not installed.
    """
    if isinstance(item, TranslationItem):
        return chrf()(text.strip(), item.translation) / 100
    return float(is_right(item, text))


def is_right(item: OpenItem | CodeItem, text: str) -> bool:
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
