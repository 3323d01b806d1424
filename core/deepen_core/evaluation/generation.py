"""Open questions and exercises: every setting answers them greedily, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from deepen_core.config import SamplingParams
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.member_runner import PREFILL_CHUNK
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.evaluation.items import AnsweredItem, CodeItem, OpenItem
from deepen_core.evaluation.judging import is_right
from deepen_core.results import Generation


@dataclass(frozen=True)
class Answer:
    """An answer to an item.

    Attributes:
        text: The answer.
        right: Whether it is right.
        steps: For each member that takes part, in how many steps it was asked.
    """

    text: str
    right: bool
    steps: dict[str, int]


def answer_items(
    decoder: Decoder,
    call: Callable[[Callable[[], Any]], Any],
    items: Sequence[AnsweredItem],
    shots: Sequence[OpenItem],
    *,
    chat: bool,
    together: int,
) -> Iterator[Answer]:
    """Yields the answers to some items, in order.

    Args:
        decoder: Steps the members, as the setting has them.
        call: Runs a piece of work where models may be run.
        items: The items.
        shots: Other questions; those of an item's kind are shown before it, with their answers.
        chat: Ask in conversations rather than in plain text.
        together: Most items that are answered at once.

    Raises:
        ChatTemplateError: With `chat`, if a member cannot read a conversation.
        ContextWindowError: If a question is longer than a member's window.
        DecodingError: If fusion fails.
        MemberError: If a member fails.
    """
    for start in range(0, len(items), together):
        part = items[start : start + together]
        sequences = [_started(decoder, item, shots, chat=chat) for item in part]
        try:
            found = _generated(decoder, call, sequences)
        finally:
            for sequence in sequences:
                sequence.release()
        for item, answer in zip(part, found, strict=True):
            steps = {work.name: work.steps for work in answer.member_work}
            yield Answer(answer.text, is_right(item, answer.text), steps)


def _started(decoder: Decoder, item: AnsweredItem, shots: Sequence[OpenItem], *, chat: bool) -> EnsembleSequence:
    if isinstance(item, CodeItem):  # a program is continued as it is
        return decoder.start(item.start, SamplingParams(max_new_tokens=item.max_new_tokens, stop=item.stop))
    similar = [shot for shot in shots if bool(shot.solution) == bool(item.solution)]
    params = SamplingParams(max_new_tokens=item.max_new_tokens, stop=() if chat else item.stop)
    return decoder.start(item.prompt(similar, chat=chat), params)


def _generated(
    decoder: Decoder, call: Callable[[Callable[[], Any]], Any], sequences: Sequence[EnsembleSequence]
) -> list[Generation]:
    """Runs some sequences to their ends."""
    for sequence in sequences:
        while call(partial(decoder.prefill, sequence, PREFILL_CHUNK)):
            pass
    while going := [sequence for sequence in sequences if not sequence.ended]:
        call(partial(decoder.step, going))
    for sequence in sequences:
        if sequence.error is not None:
            raise sequence.error
    return [sequence.generation() for sequence in sequences]
