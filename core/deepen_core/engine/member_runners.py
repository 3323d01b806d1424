"""Runs all members over the sequences of a step, and over prompts: to weigh the members, and ahead of the first one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from deepen_core.config import MemberErrorPolicy
from deepen_core.engine.member_runner import MemberLogits, MemberRunner
from deepen_core.engine.prompt_likelihood import comparable, predicts_prompts, prompts_of
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.fusion.gates import Gate
from deepen_core.fusion.mixing import Mixer
from deepen_core.fusion.prompts import PromptLikelihood
from deepen_core.members.base import Member


class MemberRunners:
    """Runs the members.

    Args:
        members: The models.
        main: The number of the main member.
        takes_part: Which members are run at all.
        mixer: Says whether and how prompts weigh the members.
        gate: Decides where the other members are asked; None for everywhere.
        on_member_error: What a failing member does to requests without a policy of their own.

    Attributes:
        each: One runner for each member.
    """

    def __init__(
        self,
        members: Sequence[Member],
        main: int,
        takes_part: Sequence[bool],
        mixer: Mixer,
        gate: Gate | None,
        on_member_error: MemberErrorPolicy,
    ) -> None:
        self._members = members
        self._main = main
        self._mixer = mixer
        self._gate = gate
        self._predicted = all(
            predicts_prompts(member) for member, takes in zip(members, takes_part, strict=True) if takes
        )
        self.each = [
            MemberRunner(m, number, is_main=number == main, on_member_error=on_member_error)
            for number, m in enumerate(members)
        ]

    def forget(self) -> None:
        """Makes the members forget what they have computed; texts that go on are computed anew."""
        for runner in self.each:
            runner.forget()

    def waits_for_likelihood(self, sequence: EnsembleSequence) -> bool:
        """Whether the policy weighs members by the prompt, and some member has yet to run this one for that."""
        unweighed = self._mixer.reads_prompts and self._predicted and sequence.prompt_likelihood is None
        return unweighed and not all(runner.knows_prompt(sequence) for runner in self.each)

    def prefill(self, sequence: EnsembleSequence, limit: int) -> int:
        """Runs a part of a sequence's prompt ahead of its first step, see `Decoder.prefill`."""
        waits, before = self.waits_for_likelihood(sequence), self._ids_run()
        self.weigh_prompts([sequence])
        if waits:
            return max(1, *(ran - held for ran, held in zip(self._ids_run(), before, strict=True)))
        return max(runner.prefill(sequence, limit) for runner in self.each)

    def weigh_prompts(self, sequences: Sequence[EnsembleSequence]) -> None:
        """Reads new prompts, and finds which members each answer needs, if the policy weighs them by the prompt."""
        if not self._mixer.reads_prompts:
            return
        for sequence in sequences:
            if sequence.prompt_likelihood is None:
                sequence.prompt_likelihood = self._prompt_likelihood(sequence)
        for sequence, needed in zip(sequences, self._mixer.needed(prompts_of(sequences)).tolist(), strict=True):
            sequence.need(needed)

    def run(self, sequences: Sequence[EnsembleSequence]) -> list[MemberLogits]:
        """Returns each member's logits. Members that are not asked keep their ids pending, and run them later."""
        if self._gate is None:
            return _run_all(self.each, sequences)
        own = self.each[self._main].run(sequences)
        asked: set[int] = set()
        if own.logits is not None:
            opened = self._gate.opens(torch.log_softmax(own.logits, dim=-1)).tolist()
            asked = {place for place, is_open in zip(own.at, opened, strict=True) if is_open}
        others = [runner for n, runner in enumerate(self.each) if n != self._main]
        said = _run_all(others, sequences, asked)
        return [*said[: self._main], own, *said[self._main :]]

    def _ids_run(self) -> list[int]:
        """Returns how many ids each member has run."""
        return [member.work.ids_run for member in self._members]

    def _prompt_likelihood(self, sequence: EnsembleSequence) -> PromptLikelihood:
        """Returns how likely the members find a prompt; nothing is run where that could not be compared."""
        if not self._predicted:
            return PromptLikelihood.unknown(len(self._members))
        return comparable([runner.prompt_likelihood(sequence) for runner in self.each])


def _run_all(
    runners: Sequence[MemberRunner], sequences: Sequence[EnsembleSequence], asked: Collection[int] | None = None
) -> list[MemberLogits]:
    """Runs members, all that compute elsewhere at the same time."""
    for runner in runners:
        runner.begin(sequences, asked)
    return [runner.run(sequences, asked) for runner in runners]
