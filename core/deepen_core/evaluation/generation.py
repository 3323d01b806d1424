"""Open questions, exercises and translations: every setting answers them in batches, greedily or by samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from deepen_core.config import SamplingParams
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.member_runner import PREFILL_CHUNK
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.evaluation.items import AnsweredItem, OpenItem, prompt_of
from deepen_core.evaluation.judging import mark
from deepen_core.results import Generation


@dataclass(frozen=True)
class Answer:
    """An answer to an item.

    Attributes:
        text: The answer.
        right: 1 if it is right, else 0; of a translation its chrF, from 0 to 1.
        steps: For each member that takes part, in how many steps it was asked.
        seconds: Its part of the time that it took to answer some items at once; None if it was not measured.
    """

    text: str
    right: float
    steps: dict[str, int]
    seconds: float | None = None


@dataclass(frozen=True)
class Samples:
    """Several answers to an item, each by its seed.

    Attributes:
        texts: The answers.
        nats: How likely each was to what gave it, in nats a byte.
    """

    texts: dict[str, str]
    nats: dict[str, float]


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
    started = [partial(_started, decoder, item, shots, SamplingParams(), chat=chat) for item in items]
    for item, (answer, seconds) in zip(items, _in_batches(decoder, call, started, together), strict=True):
        steps = {work.name: work.steps for work in answer.member_work}
        yield Answer(answer.text, mark(item, answer.text, chat=chat), steps, seconds)


def sample_items(
    decoder: Decoder,
    call: Callable[[Callable[[], Any]], Any],
    wanted: Sequence[tuple[OpenItem, Sequence[int]]],
    shots: Sequence[OpenItem],
    *,
    temperature: float,
    chat: bool,
    together: int,
) -> Iterator[Samples]:
    """Yields sampled answers to some items, in order.

    Args:
        decoder: As for `answer_items`, as the other arguments.
        call: Runs a piece of work where models may be run.
        wanted: The items, each with the seeds of its samples.
        shots: Other questions.
        temperature: At which answers are sampled.
        chat: Ask in conversations.
        together: Most samples that are generated at once.

    Raises:
        DeepenError: As from `answer_items`.
    """
    options = [
        (item, SamplingParams(temperature=temperature, seed=seed, logprobs=0))
        for item, seeds in wanted
        for seed in seeds
    ]
    started = [partial(_started, decoder, item, shots, params, chat=chat) for item, params in options]
    answers = _in_batches(decoder, call, started, together)
    for _, seeds in wanted:
        found = {str(seed): next(answers)[0] for seed in seeds}
        yield Samples(
            {seed: answer.text for seed, answer in found.items()},
            {seed: _nats_a_byte(answer) for seed, answer in found.items()},
        )


def _nats_a_byte(answer: Generation) -> float:
    tokens = answer.logprobs or []
    return sum(token.logprob for token in tokens) / max(1, sum(len(token.token) for token in tokens))


def _in_batches(
    decoder: Decoder,
    call: Callable[[Callable[[], Any]], Any],
    started: Sequence[Callable[[], EnsembleSequence]],
    together: int,
) -> Iterator[tuple[Generation, float]]:
    """Starts sequences, some at once, and yields their answers in order, each with its part of the time in seconds."""
    for first in range(0, len(started), together):
        sequences = [start() for start in started[first : first + together]]
        call(decoder.forget)  # answers, and their time, must not depend on what was asked before
        begun = time.perf_counter()
        try:
            found = _generated(decoder, call, sequences)
            seconds = (time.perf_counter() - begun) / len(found)
            yield from ((answer, seconds) for answer in found)
        finally:
            for sequence in sequences:
                sequence.release()


def _started(
    decoder: Decoder, item: AnsweredItem, shots: Sequence[OpenItem], params: SamplingParams, *, chat: bool
) -> EnsembleSequence:
    stop = () if chat and isinstance(item, OpenItem) else item.stop
    params = params.model_copy(update={"max_new_tokens": item.max_new_tokens, "stop": stop})
    return decoder.start(prompt_of(item, shots, chat=chat), params)


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
