"""Scores a given continuation: its ids, and its log-probabilities under the ensemble and each member."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from deepen_core.chat.messages import Message, Prompt, check_messages, check_unicode, prompt_list
from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.config import SamplingParams
from deepen_core.engine.engine import Engine
from deepen_core.engine.prompt_likelihood import (
    NOT_ASKED,
    comparable,
    predicts_prompts,
    prompt_likelihood,
    prompt_text,
)
from deepen_core.engine.reading import GivenText, TextReading, given_text
from deepen_core.engine.sequence_factory import SequenceFactory
from deepen_core.engine.state_reader import MemberCaller
from deepen_core.errors import ContextWindowError, PromptError
from deepen_core.fusion.prompts import PromptLikelihood
from deepen_core.members.opening import opening_of
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.text_tree import common_length
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.results import Score
from deepen_core.tokenization.vocabulary import Vocabulary

T = TypeVar("T")

_PACKED = {"cpu": 512, "cuda": 4096}
"""Most of main's ids that are read together: what several texts share is read once, and a GPU has room for many."""


class TextReader:
    """Reads given continuations with one of the members as main; other requests continue to decode meanwhile.

    Args:
        engine: The engine, whose worker runs the members.
        main: The number of the main member; the engine's own if None.
        counted: Numbers of the members that take part; those of the engine if None.
    """

    def __init__(self, engine: Engine, main: int | None = None, counted: Sequence[int] | None = None) -> None:
        self.members = engine.members
        self.main = engine.main if main is None else main
        self.counted = list(engine.counted if counted is None else counted)
        takes_part = [number in self.counted for number in range(len(self.members))]
        self._factory = SequenceFactory(self.members, self.main, takes_part)
        self._worker = engine.worker
        self._likelihoods: dict[str, PromptLikelihood] = {}  # of prompts that were read

    def call(self, work: Callable[[], T]) -> T:
        """Runs a piece of work where models may be run, and records no gradients."""
        return self._worker.call(torch.inference_mode()(work)).result()

    def readings(self, asked: Sequence[tuple[Prompt, str]], *, reads_prompts: bool = False) -> Iterator[TextReading]:
        """Yields readings of given continuations in their order, each of some that are read together.

        Args:
            asked: For each, the prompt before it, and the continuation.
            reads_prompts: Find out too how likely each member finds the prompts.

        Raises:
            PromptError: If a continuation is empty.
            ContextWindowError: If the two together are longer than a member's window.
        """
        for prompt, continuation in asked:
            _check(continuation)
            if isinstance(prompt, str):
                check_unicode(prompt, "The prompt")
            else:
                check_messages(prompt)
        texts = [self._given(prompt, continuation) for prompt, continuation in asked]
        most = _PACKED.get(self.members[self.main].device.type, _PACKED["cuda"])
        for pack in _packs(texts, self.main, most):
            likelihoods = [self.prompt_likelihood(text.prompt) for text in pack] if reads_prompts else None
            yield TextReading(self.members, self.main, self._factory, pack, self.call, likelihoods)

    def prompt_likelihood(self, prompt: str | Sequence[Message]) -> PromptLikelihood:
        """Returns how likely the members find a prompt.

        Raises:
            MemberError: If a member fails.
        """
        if not all(predicts_prompts(self.members[number]) for number in self.counted):
            return PromptLikelihood.unknown(len(self.members))
        text = prompt_text(prompt)
        if text not in self._likelihoods:
            size = len(text.encode())
            found = [
                MemberCaller(self.call, member, size, is_main=number == self.main)(
                    partial(prompt_likelihood, member, text)
                )
                if number in self.counted
                else NOT_ASKED
                for number, member in enumerate(self.members)
            ]
            self._likelihoods[text] = comparable(found)
        return self._likelihoods[text]

    def _given(self, prompt: Prompt, continuation: str) -> GivenText:
        """Prepares a text to be read by every member that takes part."""
        read = {number: self._factory.read(number, prompt, SamplingParams()) for number in self.counted}
        ids = continuation_ids(self.members[self.main].tokenizer, read[self.main], continuation)
        text = given_text(self.members, self.main, read, prompt, continuation, ids)
        for number, own in text.own_ids.items():
            member = self.members[number]
            if len(own) > member.context_window:
                raise ContextWindowError(
                    f"Prompt and continuation have {len(own)} tokens for member {member.name!r}, whose context window "
                    f"is {member.context_window}: shorten them by at least {len(own) - member.context_window} tokens."
                )
        return text


def score(engine: Engine, asked: Sequence[tuple[Prompt, str]], *, greedy: bool = False) -> list[Score]:
    """Scores given continuations, see `Ensemble.score`.

    Args:
        engine: The engine.
        asked: For each, the prompt before it, and the continuation.
        greedy: Report too which tokens are the most probable ones.

    Raises:
        PromptError: If a continuation is empty.
        ContextWindowError: If the two together are longer than a member's window.
        MemberError: If a member fails.
    """
    found: list[Score] = []
    reader = TextReader(engine)
    for reading in reader.readings(asked, reads_prompts=engine.decoder.reads_prompts):
        known: dict[int, list[float]] = {}
        logprobs: list[list[float]] = [[] for _ in reading.texts]
        best: list[list[bool]] = [[] for _ in reading.texts]
        for steps in reading:
            if greedy:
                fused, chosen = reader.call(partial(engine.decoder.choices_in, steps, known))
                for text, is_best in zip(steps.texts, chosen, strict=True):
                    best[text].append(is_best)
            else:
                fused = reader.call(partial(engine.decoder.logprobs_of, steps, known))
            for text, value in zip(steps.texts, fused, strict=True):
                logprobs[text].append(value)
        of_members = reading.member_scores()
        found += [
            Score(text.token_ids, logprobs[place], text.bytes, of_members[place], best[place] if greedy else None)
            for place, text in enumerate(reading.texts)
        ]
    return found


def paired(prompt: Prompt | Sequence[Prompt], continuations: Sequence[str]) -> list[tuple[Prompt, str]]:
    """Returns the prompt of each continuation.

    Args:
        prompt: One for all, or a list of one for each.
        continuations: Several.

    Raises:
        PromptError: If there is not one prompt for each.
    """
    if not isinstance(continuations, Sequence):
        raise PromptError(f"The continuation is a {type(continuations).__name__}: give a text, or a list of texts.")
    prompts, single = prompt_list(prompt)
    if single:
        prompts *= len(continuations)
    if len(prompts) != len(continuations):
        raise PromptError(
            f"There are {len(prompts)} prompts for {len(continuations)} continuations: give one for each, or one for "
            "all of them."
        )
    return list(zip(prompts, continuations, strict=True))


def _packs(texts: Sequence[GivenText], main: int, most: int) -> Iterator[list[GivenText]]:
    """Yields texts that are read together, in order: at most so many of main's ids, unless a single text has more."""
    pack: list[GivenText] = []
    count = 0
    for text in texts:
        ids = text.own_ids[main]
        new = len(ids) - (common_length(pack[-1].own_ids[main], ids) if pack else 0)
        if pack and count + new > most:
            yield pack
            pack, count, new = [], 0, len(ids)
        pack.append(text)
        count += new
    if pack:
        yield pack


def _check(continuation: object) -> None:
    """Rejects what is not a text to score."""
    if not isinstance(continuation, str):
        raise PromptError(f"The continuation is a {type(continuation).__name__}: give a text, or a list of texts.")
    if not continuation:
        raise PromptError("The continuation is empty: there is nothing to score.")
    check_unicode(continuation, "The continuation")


def continuation_ids(tokenizer: MemberTokenizer, prompt: MemberPrompt, continuation: str) -> list[int]:
    """Returns main's ids of a continuation, such that they follow the prompt's own ids.

    If the prompt's ids are the beginning of the whole text's, they are the remaining ones. If a token spans the two
    texts, the continuation is encoded on its own.

    Raises:
        PromptError: If the tokenizer drops the whole continuation.
    """
    opening = opening_of(prompt, tokenizer, prompt, tokenizer)
    part = MemberSequence(prompt, tokenizer, is_main=False, opening=opening)
    before = list(part.ids)
    part.append_text(continuation)
    ids = part.ids[len(before) :] if part.ids[: len(before)] == before else _on_its_own(tokenizer, continuation)
    if not ids:
        raise PromptError(f"The main member's tokenizer has no tokens for {continuation!r} after this prompt.")
    return ids


def _on_its_own(tokenizer: MemberTokenizer, text: str) -> list[int]:
    """Returns ids that spell a text exactly, as the tokenizer encodes it after some other character."""
    for ids in tokenizer.backend.encode_behind(text):
        if tokenizer.vocabulary.join(ids) == text.encode():
            return ids
    return _longest_match(tokenizer.vocabulary, text.encode())


def _longest_match(vocabulary: Vocabulary, data: bytes) -> list[int]:
    """Returns ids that spell some bytes, the longest token first; bytes that no token begins with are left out."""
    longest = max(map(len, vocabulary.tokens), default=0)
    ids, place = [], 0
    while place < len(data):
        lengths = range(min(longest, len(data) - place), 0, -1)
        length = next((n for n in lengths if data[place : place + n] in vocabulary.tokens), 0)
        if length:
            ids.append(vocabulary.tokens[data[place : place + length]])
        place += length or 1
    return ids
