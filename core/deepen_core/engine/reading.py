"""Reads given texts: what every member says before each of main's tokens, in one forward over all of them.

A text grows by main's tokens, as in an answer, and each member holds its own ids of what there is so far. All these
states of all texts are one tree of ids for each member (`members.text_tree`), so an id is run once, not once a step.
Each member's own log-probabilities of a text, by its own tokens, come from the same forwards. A member that cannot run
trees is run step by step (`engine.state_reader`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from deepen_core.chat.messages import Message
from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.config import SamplingParams
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.engine.sequence_factory import SequenceFactory
from deepen_core.engine.state_reader import Call, MemberCaller, StateReader, state_reader
from deepen_core.errors import ContextWindowError, PromptError
from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.fusion.mixing import GivenSteps
from deepen_core.fusion.prompts import PromptLikelihood, PromptLikelihoods
from deepen_core.members.base import Member
from deepen_core.members.opening import opening_of
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.text_tree import common_length
from deepen_core.results import MemberScore

STEPS = 256
"""Most steps whose distributions are held at once, and about the number of ids that a forward runs. In bfloat16 on a
CPU, a text took a sixth longer with 128."""
_FUSED_ON_CPU = 8
"""Steps that are fused together, so that what they take stays in a core's cache. An `exp` over 152,000 tokens took 0.12
ms a step, and 0.89 ms with 128 steps at once."""


@dataclass(frozen=True)
class GivenText:
    """A text to read.

    Attributes:
        prompt: The text or conversation before it.
        token_ids: Main's ids of the text.
        bytes: Its length in UTF-8 bytes.
        own_ids: For each member that takes part, by its number, its ids of the prompt and the text together.
        own_start: For each of these, the number of ids before the first that is its own score's.
    """

    prompt: str | Sequence[Message]
    token_ids: list[int]
    bytes: int
    own_ids: dict[int, list[int]]
    own_start: dict[int, int]


class TextReading:
    """Reads some texts; iterate over it once.

    Args:
        members: The models.
        main: The number of the member whose vocabulary is used.
        factory: Creates the sequences of the texts.
        texts: The texts. Those with the same prompt share its ids if they follow one another.
        call: Runs a piece of work where models may be run.
        likelihoods: How likely the members find the prompt of each text; None if not asked for.

    Attributes:
        texts: As given.
    """

    def __init__(
        self,
        members: Sequence[Member],
        main: int,
        factory: SequenceFactory,
        texts: Sequence[GivenText],
        call: Call,
        likelihoods: Sequence[PromptLikelihood] | None = None,
    ) -> None:
        self._members = list(members)
        self._main = main
        self._factory = factory
        self.texts = list(texts)
        self._likelihoods = None if likelihoods is None else PromptLikelihoods.of(likelihoods)
        self._readers = {number: self._reader(number, call) for number in texts[0].own_ids}

    def _reader(self, number: int, call: Call) -> StateReader:
        member, lengths = self._members[number], [len(text.own_ids[number]) for text in self.texts]
        caller = MemberCaller(call, member, sum(lengths), is_main=number == self._main)
        return state_reader(caller, max(lengths))

    def member_scores(self) -> list[list[MemberScore]]:
        """Returns the members' own scores of each text, once all have been read."""
        own = {number: reader.own() for number, reader in self._readers.items()}
        return [
            [
                MemberScore(
                    self._members[number].name,
                    text.own_ids[number][text.own_start[number] :],
                    found[place],
                    text.bytes,
                )
                for number, found in own.items()
            ]
            for place, text in enumerate(self.texts)
        ]

    def __iter__(self) -> Iterator[GivenSteps]:
        steps = _Steps(self._members, self._main, self._likelihoods)
        for place, text in enumerate(self.texts):
            sequence = self._factory.create(text.prompt, SamplingParams())
            try:
                for ready in self._read(place, text, sequence, steps):
                    yield from self._fused_together(ready)
            finally:
                sequence.release()
        if steps.token_ids:
            yield from self._fused_together(steps.taken(self._readers))
        for reader in self._readers.values():
            reader.take()  # what is left of the members' own ids

    def _fused_together(self, steps: GivenSteps) -> Iterator[GivenSteps]:
        on_cpu = self._members[self._main].device.type == "cpu"
        return steps.parts(_FUSED_ON_CPU if on_cpu else len(steps.token_ids))

    def _read(self, place: int, text: GivenText, sequence: EnsembleSequence, steps: _Steps) -> Iterator[GivenSteps]:
        parts = sequence.member_sequences
        for number, reader in self._readers.items():
            part = parts[number]
            assert part is not None, "it takes part"
            reader.begin(part, text.own_ids[number], text.own_start[number])
        for token_id in text.token_ids:
            for number, reader in self._readers.items():
                part = parts[number]
                if part is not None and (number == self._main or not sequence.others_behind):
                    self._check_window(number, part)
                    reader.note(part)
                    steps.note(number, part)
            steps.close(place, token_id, sequence)
            sequence.speak(token_id)
            if len(steps.token_ids) >= STEPS:
                yield steps.taken(self._readers)
        for reader in self._readers.values():
            reader.end()

    def _check_window(self, number: int, part: MemberSequence) -> None:
        """Rejects a state that a member has no room for: it may be longer than the whole text, which was checked."""
        member = self._members[number]
        if len(part.ids) > member.context_window:
            raise ContextWindowError(
                f"The beginning of a text has {len(part.ids)} tokens for member {member.name!r}, whose window is "
                f"{member.context_window}: shorten the texts by a few tokens."
            )


class _Steps:
    """Collects steps until they are run."""

    def __init__(self, members: Sequence[Member], main: int, likelihoods: PromptLikelihoods | None) -> None:
        self._members = list(members)
        self._main = main
        self._likelihoods = likelihoods
        self._clear()

    def _clear(self) -> None:
        # Of each member that speaks, for each step: the end of its text, and its ids at `open_places`.
        self._last: list[dict[int, tuple[Heard, list[int]]]] = []
        self._now: dict[int, tuple[Heard, list[int]]] = {}
        self._said: list[list[int]] = []
        self.texts: list[int] = []
        self.token_ids: list[int] = []

    def note(self, number: int, part: MemberSequence) -> None:
        """Adds a member to the step."""
        end = Heard(part.ids[-1], None, (), cut=part.cut, dummy=part.has_dummy, held=part.holds_blank)
        self._now[number] = end, [part.ids[place] for place in part.open_places]

    def close(self, text: int, token_id: int, sequence: EnsembleSequence) -> None:
        """Ends the step, with the token that follows."""
        self._last.append(self._now)
        self._now = {}
        self._said.append(list(sequence.token_ids))
        self.texts.append(text)
        self.token_ids.append(token_id)

    def taken(self, readers: dict[int, StateReader]) -> GivenSteps:
        """Runs the steps."""
        count = len(self.token_ids)
        speaking = torch.zeros(count, len(self._members), dtype=torch.bool)
        logprobs: list[torch.Tensor | None] = [None] * len(self._members)
        silent = Heard(0, None, (), cut=False)
        ends = [[silent] * count for _ in self._members]
        for number, reader in readers.items():
            at = [place for place, last in enumerate(self._last) if number in last]
            rows, before = reader.take()
            if not at:
                continue
            speaking[at, number] = True
            if len(at) < count:
                spread = rows.new_zeros(count, rows.shape[1])
                spread[at] = rows
                rows = spread
            logprobs[number] = rows
            for place, earlier in zip(at, before, strict=True):
                end, open_ids = self._last[place][number]
                early, trail = (earlier[0] if earlier else None), list(zip(open_ids, earlier, strict=False))
                ends[number][place] = replace(
                    end, before=None if end.held else early, said=self._said[place], trail=trail
                )
        prompts = None if self._likelihoods is None else self._likelihoods.only(self.texts)
        found = GivenSteps(self.texts, self.token_ids, logprobs, speaking, ends, prompts)
        self._clear()
        return found


def given_text(
    members: Sequence[Member],
    main: int,
    prompts: dict[int, MemberPrompt],
    prompt: str | Sequence[Message],
    text: str,
    token_ids: list[int],
) -> GivenText:
    """Prepares a text to be read.

    Args:
        members: The models.
        main: The number of the main member.
        prompts: The prompt as each member that takes part reads it, by its number.
        prompt: The prompt.
        text: The text after it.
        token_ids: Main's ids of the text.

    Raises:
        PromptError: If a member's very first id spans both, and it has no BOS token to condition it on.
    """
    own_ids, own_start = {}, {}
    for number, read in prompts.items():
        member = members[number]
        opening = opening_of(read, member.tokenizer, prompts[main], members[main].tokenizer)
        part = MemberSequence(read, member.tokenizer, is_main=False, opening=opening)
        before = list(part.ids)
        part.append_text(text)
        own_ids[number], own_start[number] = part.ids, common_length(before, part.ids)
        if own_start[number] == 0:
            bos = member.tokenizer.vocabulary.bos_id
            if bos is None:
                raise PromptError(
                    f"Member {member.name!r} has no BOS token, and its first token spans prompt and continuation: give "
                    "a longer prompt."
                )
            own_ids[number], own_start[number] = [bos, *part.ids], 1
    return GivenText(prompt, token_ids, len(text.encode()), own_ids, own_start)
