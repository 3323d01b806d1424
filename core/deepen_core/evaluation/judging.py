"""How good an answer is."""

from __future__ import annotations

from collections.abc import Sequence

from deepen_core.evaluation.code_run import passes
from deepen_core.evaluation.items import AnsweredItem, CodeItem, OpenItem, TranslationItem
from deepen_core.voting.extraction import last_number, plain
from deepen_core.voting.risk import chrf


def mark(item: AnsweredItem, text: str, *, chat: bool = False) -> float:
    """Returns 1 for a right answer and 0 for a wrong one; for a translation its chrF, from 0 to 1.

    Args:
        item: The item.
        text: The answer.
        chat: See `is_right`.

    Raises:
        SamplingError: For a translation, if sacrebleu is not installed.
    """
    if isinstance(item, TranslationItem):
        return chrf()(text.strip(), item.translation) / 100
    return float(is_right(item, text, chat=chat))


def is_right(item: OpenItem | CodeItem, text: str, *, chat: bool = False) -> bool:
    """Returns whether an answer to an item is right.

    Args:
        item: The item.
        text: The answer.
        chat: Whether it was asked for in a conversation. Small models answer in sentences there, whatever they are
            told, so a short answer has to be in the text, as whole words; elsewhere it has to be the text.
    """
    if isinstance(item, CodeItem):
        return passes(item.program(text))
    if item.solution:
        found = last_number(text)
        return found is not None and found in [last_number(answer) for answer in item.answers]
    return says_one_of(text, item.answers) or (chat and contains_one_of(text, item.answers))


def contains_one_of(text: str, answers: Sequence[str]) -> bool:
    """Returns whether one of some answers is in a text, as whole words; compared as in `says_one_of`."""
    said = f" {plain(text)} "
    return any(f" {wanted} " in said for wanted in map(plain, answers) if wanted)


def says_one_of(text: str, answers: Sequence[str]) -> bool:
    """Returns whether a text is one of some answers, but for case, punctuation, articles and blanks (as in SQuAD)."""
    said = plain(text)
    if said:
        return said in {plain(answer) for answer in answers}
    return text.strip().casefold() in {answer.strip().casefold() for answer in answers}  # nothing but punctuation
