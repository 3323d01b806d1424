"""Runs one member over the sequences of a step, and handles its failures."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from deepen_core.config import MemberErrorPolicy
from deepen_core.engine.prompt_likelihood import NOT_ASKED, prompt_likelihood
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.errors import MemberError, MemberTimeoutError, NonFiniteLogitsError, brief
from deepen_core.members.base import Member, begin, forget
from deepen_core.members.memory import MORE_ROOM, is_memory
from deepen_core.members.opening import respelled
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence

PREFILL_CHUNK = 256
"""Prompt ids that run between two steps, so that other requests do not wait for a long prompt."""

_PROMPTS_KEPT = 64
"""How many prompts' likelihoods are kept: several answers to one prompt are sampled, and it is read once."""


@dataclass(frozen=True)
class MemberLogits:
    """One member's logits in a step.

    Attributes:
        at: Places of the sequences that it has logits for.
        logits: Its logits there, [those sequences, vocabulary]; None if there are none.
    """

    at: list[int]
    logits: torch.Tensor | None

    def only(self, places: Sequence[int]) -> MemberLogits:
        """Returns the logits of some of the sequences, with their places renumbered."""
        new = {old: place for place, old in enumerate(places)}
        kept = [i for i, place in enumerate(self.at) if place in new]
        if self.logits is None or not kept:
            return MemberLogits([], None)
        logits = self.logits if len(kept) == len(self.at) else self.logits[kept]
        return MemberLogits([new[self.at[i]] for i in kept], logits)


class MemberRunner:
    """Runs one member.

    A failure concerns only the sequence in which it happens: depending on the request's policy, the sequence ends or
    continues without the member. Nothing that was computed before a failure is used after it.

    Args:
        member: The model.
        number: Its number in the ensemble.
        is_main: Whether it is the main member, without which no sequence can continue.
        on_member_error: The policy of sequences without one.
    """

    def __init__(self, member: Member, number: int, *, is_main: bool, on_member_error: MemberErrorPolicy) -> None:
        self.member = member
        self._number = number
        self._is_main = is_main
        self._policy = on_member_error
        self._likelihoods: dict[tuple[str, bool], tuple[float, float] | None] = {}  # of the last prompts
        self._width: int | None = None  # number of sequences that were found to fit into memory at once

    def forget(self) -> None:
        """Drops what the member has computed of any text."""
        self._likelihoods.clear()
        forget(self.member)

    def begin(self, sequences: Sequence[EnsembleSequence], asked: Collection[int] | None = None) -> None:
        """Begins what `run` waits for, if the member computes elsewhere; arguments as there."""
        at = self._places(sequences, asked)
        if at and self._width is None:
            begin(self.member, [self._part(sequences[place]) for place in at])

    def run(self, sequences: Sequence[EnsembleSequence], asked: Collection[int] | None = None) -> MemberLogits:
        """Returns logits for the next token of each sequence in which the member takes part and does not fail.

        Args:
            sequences: The sequences.
            asked: Places of those in which it is asked; all if None.
        """
        at = self._places(sequences, asked)
        if not at:
            return MemberLogits([], None)
        width = self._width or len(at)
        parts = [self._run_together(sequences, at[start : start + width]) for start in range(0, len(at), width)]
        found = self._respelled(sequences, _joined(parts))
        for place in found.at:
            self._part(sequences[place]).steps += 1
        return found

    def _respelled(self, sequences: Sequence[EnsembleSequence], found: MemberLogits) -> MemberLogits:
        """Spells the first tokens of answers as main does, where the member has others."""
        firsts = {line: self._part(sequences[place]).first_ids for line, place in enumerate(found.at)}
        changed = {line: first_ids for line, first_ids in firsts.items() if first_ids is not None}
        if found.logits is None or not changed:
            return found
        logits = found.logits.clone()  # the member's own are looked at again
        for line, first_ids in changed.items():
            logits[line] = respelled(logits[line], first_ids)
        return MemberLogits(found.at, logits)

    def _run_together(self, sequences: Sequence[EnsembleSequence], at: list[int]) -> MemberLogits:
        try:
            logits = self.member.next_logits([self._part(sequences[place]) for place in at])
        except Exception as problem:  # noqa: BLE001 (models raise anything; the request reports it)
            if isinstance(problem, MemberTimeoutError):  # it still runs, or they would take as long again
                for place in at:
                    self._fail(sequences[place], MemberTimeoutError(f"{problem}{self._way_out()}"))
                return MemberLogits([], None)
            return self._run_each(sequences, at, problem)
        return self._checked(sequences, at, logits)

    def prefill(self, sequence: EnsembleSequence, limit: int) -> int:
        """Runs at most `limit` ids of the prompt ahead of `run`; returns their number, 0 if none need to be run."""
        if not self._is_run_in(sequence) or self._part(sequence).pending <= KEPT_TAIL:
            return 0
        try:
            return self.member.prefill(self._part(sequence), limit)
        except Exception as problem:  # noqa: BLE001 (as in `run`)
            self._fail(sequence, problem)
            return 0

    def prompt_likelihood(self, sequence: EnsembleSequence) -> tuple[float, float] | None:
        """See `deepen_core.engine.prompt_likelihood`; `NOT_ASKED` if the member does not take part, or fails."""
        if not self._is_weighed(sequence):
            return NOT_ASKED
        part = self._part(sequence)
        key = _prompt_key(sequence, part)
        try:
            if key not in self._likelihoods:
                found = prompt_likelihood(self.member, sequence.prompt_text, part)
                while len(self._likelihoods) >= _PROMPTS_KEPT:
                    del self._likelihoods[next(iter(self._likelihoods))]
                self._likelihoods[key] = found
            return self._likelihoods[key]
        except Exception as problem:  # noqa: BLE001 (as in `run`)
            self._fail(sequence, problem)
            return NOT_ASKED

    def knows_prompt(self, sequence: EnsembleSequence) -> bool:
        """Whether `prompt_likelihood` runs nothing."""
        return not self._is_weighed(sequence) or _prompt_key(sequence, self._part(sequence)) in self._likelihoods

    def _is_weighed(self, sequence: EnsembleSequence) -> bool:
        return not sequence.ended and sequence.member_sequences[self._number] is not None

    def _places(self, sequences: Sequence[EnsembleSequence], asked: Collection[int] | None) -> list[int]:
        """Returns the places of the sequences that the member runs, of those in which it is asked."""
        wanted = range(len(sequences)) if asked is None else sorted(asked)
        return [place for place in wanted if self._takes_part(sequences[place])]

    def _takes_part(self, sequence: EnsembleSequence) -> bool:
        return self._is_run_in(sequence) and (self._is_main or not sequence.others_behind)

    def _is_run_in(self, sequence: EnsembleSequence) -> bool:
        held = sequence.member_sequences[self._number] is not None
        return held and sequence.needed[self._number] and not sequence.ended

    def _part(self, sequence: EnsembleSequence) -> MemberSequence:
        part = sequence.member_sequences[self._number]
        assert part is not None, "it takes part"
        return part

    def _run_each(self, sequences: Sequence[EnsembleSequence], at: Sequence[int], problem: Exception) -> MemberLogits:
        """Finds the sequences at fault, and runs the others one by one.

        A forward that was interrupted may have written to some layers of a cache and not to others, so every cache that
        took part is dropped and computed again.
        """
        if len(at) == 1:
            self._fail(sequences[at[0]], problem)
            return MemberLogits([], None)
        traceback.clear_frames(problem.__traceback__)
        for place in at:
            self._forget(sequences[place])
        found: list[torch.Tensor] = []
        answered: list[int] = []
        for place in at:
            part = self._part(sequences[place])
            try:
                while self.member.prefill(part, PREFILL_CHUNK):
                    pass
                found.append(self.member.next_logits([part])[0])
                answered.append(place)
            except Exception as again:  # noqa: BLE001 (as in `run`)
                self._fail(sequences[place], again)
        if is_memory(problem) and len(answered) == len(at):  # each fits alone, but not all together
            self._width = max(1, len(at) // 2)
        return self._checked(sequences, answered, torch.stack(found)) if found else MemberLogits([], None)

    def _forget(self, sequence: EnsembleSequence) -> None:
        part = self._part(sequence)
        part.release()
        part.cached = 0

    def _checked(self, sequences: Sequence[EnsembleSequence], at: list[int], logits: torch.Tensor) -> MemberLogits:
        """Fails the sequences whose logits are not finite."""
        best = logits.amax(-1)  # NaN if any entry is
        finite = torch.isfinite(best)
        if bool(finite.all()):
            return MemberLogits(at, logits)
        for place, value, fine in zip(at, best.tolist(), finite.tolist(), strict=True):
            if not fine:
                self._fail(sequences[place], NonFiniteLogitsError(non_finite(self.member, value) + self._way_out()))
        kept = finite.nonzero()[:, 0]
        return MemberLogits([at[i] for i in kept.tolist()], logits[kept])

    def _fail(self, sequence: EnsembleSequence, problem: Exception) -> None:
        traceback.clear_frames(problem.__traceback__)  # they hold everything that the forward had computed
        error = problem if isinstance(problem, MemberError) else self._error(sequence, problem)
        policy = sequence.params.on_member_error or self._policy
        if self._is_main or policy == "raise":
            sequence.fail(error)
        else:
            sequence.drop(
                self._number,
                f"Member {self.member.name!r} failed and was dropped from token {len(sequence.token_ids) + 1} of the "
                f"answer on: {brief(problem)}",
            )

    def _error(self, sequence: EnsembleSequence, problem: Exception) -> MemberError:
        advice = f" {MORE_ROOM}" if is_memory(problem) else ""
        error = MemberError(
            f"Member {self.member.name!r} failed with {sequence.main_sequence.prompt_tokens} prompt tokens and "
            f"{len(sequence.token_ids)} tokens of the answer: {brief(problem)}.{advice}{self._way_out()}"
        )
        error.__cause__ = problem
        return error

    def _way_out(self) -> str:
        if self._is_main:
            return " It is the main member, without which no answer can continue."
        return " With on_member_error='drop' requests continue without it."


def _prompt_key(sequence: EnsembleSequence, part: MemberSequence) -> tuple[str, bool]:
    """Returns what a likelihood is kept by: a sequence that shares nothing must not depend on what others have run."""
    return sequence.prompt_text, part.shares


def non_finite(member: Member, value: float) -> str:
    """Returns what to say about logits whose largest is not a finite number.

    Args:
        member: The member that returned them.
        value: The largest of them.
    """
    why = "its weights are damaged, or its code fails on this text (run it alone in transformers to see)"
    if member.dtype == torch.float16:  # the other dtypes have the range of float32
        why = "its dtype float16 overflows (load it with dtype='bfloat16' or 'float32'), or its weights are damaged"
    return f"Member {member.name!r} returned logits whose largest is {value}: {why}."


def _joined(parts: Sequence[MemberLogits]) -> MemberLogits:
    """Joins the logits of several groups of sequences."""
    if len(parts) == 1:
        return parts[0]
    logits = [part.logits for part in parts if part.logits is not None]
    return MemberLogits([place for part in parts for place in part.at], torch.cat(logits) if logits else None)
