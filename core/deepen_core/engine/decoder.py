"""The decoding step: runs what is pending, fuses, chooses a token, and updates the other members with its text."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from deepen_core.chat.messages import Message
from deepen_core.config import MemberErrorPolicy, SamplingParams
from deepen_core.engine.failures import choice_failed, fusion_failed, report_failed, step_failed, told_as
from deepen_core.engine.logprobs import TokenReporter
from deepen_core.engine.member_runner import MemberLogits
from deepen_core.engine.member_runners import MemberRunners
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.engine.sequence_factory import SequenceFactory
from deepen_core.engine.step_fusion import FusedStep, fuse
from deepen_core.engine.trace_recorder import StepTrace, TraceRecorder
from deepen_core.errors import DecodingError, DeepenError
from deepen_core.fusion.base import Fusion
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.gates import Gate
from deepen_core.fusion.mixing import GivenSteps, Mixer
from deepen_core.fusion.policies import WeightPolicy
from deepen_core.members.base import Member

T = TypeVar("T")


class Decoder:
    """Steps sequences through all members.

    Args:
        members: The models.
        main: The number of the member whose vocabulary is used.
        weights: Weighs the members in each step; a member without weight is never run, unless it is main.
        fusion: Fuses several distributions into one.
        strategy: Name of the fusion, for error messages.
        on_member_error: What a failing member does to requests without a policy of their own.
        gate: Decides where the other members are asked; None for everywhere.

    Attributes:
        factory: Creates sequences.
    """

    def __init__(
        self,
        members: Sequence[Member],
        main: int,
        weights: WeightPolicy,
        fusion: Fusion,
        strategy: str,
        on_member_error: MemberErrorPolicy = "raise",
        gate: Gate | None = None,
    ) -> None:
        self._members = list(members)
        self._main = main
        self._mixer = Mixer(fusion, weights, main, gate)
        self._takes_part = [i == main or weight > 0 for i, weight in enumerate(weights.describe())]
        self.factory = SequenceFactory(members, main, self._takes_part)
        self._strategy = strategy
        self._vocabulary = members[main].tokenizer.vocabulary
        self._reporter = TokenReporter(members, main)
        self._recorder = TraceRecorder(members, main, self._takes_part)
        self._runners = MemberRunners(self._members, main, self._takes_part, self._mixer, gate, on_member_error)

    def start(self, prompt: str | Sequence[Message], params: SamplingParams) -> EnsembleSequence:
        """See `SequenceFactory.create`."""
        sequence = self.factory.create(prompt, params)
        sequence.record = self._mixer.first()
        return sequence

    def forget(self) -> None:
        """Makes the members forget what they have computed; texts that go on are computed anew."""
        self._runners.forget()

    @property
    def reads_prompts(self) -> bool:
        """See `WeightPolicy.reads_prompts`."""
        return self._mixer.reads_prompts

    def waits_for_likelihood(self, sequence: EnsembleSequence) -> bool:
        """Whether the policy weighs members by the prompt, and some member has yet to run this one for that."""
        return self._runners.waits_for_likelihood(sequence)

    @torch.inference_mode()
    def prefill(self, sequence: EnsembleSequence, limit: int) -> int:
        """Runs a part of a sequence's prompt ahead of its first step, in every member.

        Args:
            sequence: The sequence; it may fail.
            limit: Maximum number of ids that each member runs.

        Returns:
            The largest number of ids that a member ran; 0 if none need to be run. If members have to run the prompt's
            text to be weighed, the first call does nothing else, and returns at least 1.
        """
        return self._runners.prefill(sequence, limit)

    @torch.inference_mode()
    def step(self, sequences: Sequence[EnsembleSequence]) -> None:
        """Gives each sequence its next token, or ends it; a sequence in which something fails ends with the error."""
        # 1) Every member runs what is pending.
        self._runners.weigh_prompts(sequences)
        going = [sequence for sequence in sequences if not (sequence.ended or self._fills_window(sequence))]
        said = self._runners.run(going)
        alive = [place for place, sequence in enumerate(going) if not sequence.ended]
        going, said = [going[place] for place in alive], [s.only(alive) for s in said]
        if going:
            self._conclude(going, said)

    def _conclude(self, sequences: Sequence[EnsembleSequence], said: Sequence[MemberLogits]) -> None:
        """Chooses each sequence's next token from the members' logits."""
        # 2) Fuse the members' distributions.
        together = self._fused(sequences, said)
        if together is None:
            if len(sequences) > 1:  # find the sequences at fault
                for place, sequence in enumerate(sequences):
                    self._conclude([sequence], [one.only([place]) for one in said])
            return
        # 3) Choose a token for each sequence, and update the other members with it.
        traced = self._recorder.observe(sequences, together.outputs)
        for place, sequence in enumerate(sequences):
            token = sequence.next_token
            try:
                self._speak(sequence, place, said, together, traced)
            except DeepenError as error:
                sequence.fail(error)
            except Exception as problem:  # noqa: BLE001 (a failure in one sequence must not end the others)
                sequence.fail(step_failed(problem, token=token))
        if traced is not None:
            traced.finish()
        self._learn(sequences, together.comparison)

    def _learn(self, sequences: Sequence[EnsembleSequence], comparison: Comparison | None) -> None:
        """Records how well each member predicted the tokens that were just chosen."""
        if comparison is None or not self._mixer.learns:
            return
        learning = [not sequence.ended and sequence.chooses_freely for sequence in sequences]
        tokens = [sequence.token_ids[-1] if learns else 0 for sequence, learns in zip(sequences, learning, strict=True)]
        relative = comparison.relative(tokens).tolist()
        for sequence, learns, nats in zip(sequences, learning, relative, strict=True):
            if learns:
                sequence.record = self._mixer.after(sequence.record, nats)

    def _fused(self, sequences: Sequence[EnsembleSequence], said: Sequence[MemberLogits]) -> FusedStep | None:
        """Returns the fused distributions, or None if fusing fails; a sequence that is alone then ends."""
        try:
            return fuse(sequences, said, self._mixer, self._main)
        except Exception as problem:  # noqa: BLE001 (the request reports it)
            traceback.clear_frames(problem.__traceback__)  # their tensors may be what exhausts the memory
            if len(sequences) == 1:
                takes_part = [part is not None for part in sequences[0].member_sequences]
                where = f"at token {sequences[0].next_token} of the answer"
                sequences[0].fail(self._fusion_failed(problem, where, takes_part))
            return None

    def _fusion_failed(self, problem: Exception, where: str, members: Sequence[bool]) -> DecodingError:
        return fusion_failed(
            problem,
            where=where,
            members=[m.name for m, takes_part in zip(self._members, members, strict=True) if takes_part],
            strategy=self._strategy,
            main_alone=[float(number == self._main) for number in range(len(self._members))],
        )

    def _speak(
        self,
        sequence: EnsembleSequence,
        place: int,
        said: Sequence[MemberLogits],
        together: FusedStep,
        traced: StepTrace | None,
    ) -> None:
        """Chooses a sequence's token, and updates the other members and the caller with it.

        Raises:
            DecodingError: If any of this fails.
        """
        own_scores = said[self._main].logits
        assert own_scores is not None, "main has logits in every sequence that continues"
        with told_as(partial(choice_failed, token=sequence.next_token, params=sequence.params)):
            token_id = sequence.choose(together.scores[place], own_scores[place])
        if sequence.params.logprobs is not None and token_id not in self._vocabulary.stop_ids:
            own = [(n, self._own(said[n], p, place)) for n, p in enumerate(together.own) if self._takes_part[n]]
            with told_as(partial(report_failed, token=sequence.next_token)):
                report = self._reporter.report(token_id, sequence.params.logprobs, together.logprobs[place], own)
                sequence.logprobs.append(report)
        if traced is not None and sequence.params.trace:
            traced.chose(place, token_id, sequence)
        sequence.accept(token_id)

    @torch.inference_mode()
    def logprobs_of(self, steps: GivenSteps, known: dict[int, list[float]]) -> list[float]:
        """Returns the fused log-probability (nats) of the token that follows in each step of given texts.

        Args:
            steps: The steps.
            known: The record of each text before them (`WeighingInputs.record`); afterwards, after them.

        Raises:
            DecodingError: If fusion fails.
        """
        return self._over_given(partial(self._mixer.logprobs_of, steps, known))

    @torch.inference_mode()
    def choices_in(self, steps: GivenSteps, known: dict[int, list[float]]) -> tuple[list[float], list[bool]]:
        """Returns as `logprobs_of`, and whether each of these tokens is the most probable one.

        Args:
            steps: The steps.
            known: As for `logprobs_of`.

        Raises:
            DecodingError: If fusion fails.
        """
        return self._over_given(partial(self._mixer.choices_in, steps, known))

    def _over_given(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as problem:
            raise self._fusion_failed(problem, "over a given text", self._takes_part) from problem

    def _fills_window(self, sequence: EnsembleSequence) -> bool:
        parts = zip(self._members, sequence.member_sequences, sequence.needed, strict=True)
        for member, part, needed in parts:
            if needed and part is not None and len(part.ids) > member.context_window:
                sequence.warnings.append(
                    f"Ended where the text fills the context window of member {member.name!r}, "
                    f"{member.context_window} tokens."
                )
                sequence.finish("length")
                return True
        return False

    @staticmethod
    def _own(said: MemberLogits, logprobs: torch.Tensor | None, place: int) -> torch.Tensor | None:
        return logprobs[place] if logprobs is not None and place in said.at else None
