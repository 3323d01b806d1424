"""The decoding step: runs what is pending, fuses, chooses a token, and updates the other members with its text."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from deepen_core.chat.messages import Message
from deepen_core.config import MemberErrorPolicy, SamplingParams
from deepen_core.engine.failures import choice_failed, fusion_failed, report_failed, step_failed, told_as
from deepen_core.engine.logprobs import TokenReporter
from deepen_core.engine.member_runner import MemberLogits, MemberRunner
from deepen_core.engine.prompt_likelihood import comparable, predicts_prompts
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.engine.sequence_factory import SequenceFactory
from deepen_core.engine.trace_recorder import Outputs, StepTrace, TraceRecorder
from deepen_core.errors import DecodingError, DeepenError
from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.fusion.base import Fusion
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.gates import Gate
from deepen_core.fusion.mixing import GivenSteps, Mixer
from deepen_core.fusion.policies import WeighingInputs, WeightPolicy
from deepen_core.fusion.prompts import PromptLikelihood, PromptLikelihoods
from deepen_core.members.base import Member, forget

T = TypeVar("T")


class _Fused(NamedTuple):
    """What the members say together."""

    scores: torch.Tensor
    """To choose by [sequences, main's vocabulary]: `logprobs`, shifted to the scale of main's logits where a request's
    sampler depends on it. Where only main has weight they are main's logits themselves, so that rounding never decides
    differently from `transformers`."""
    logprobs: torch.Tensor
    """Fused log-probabilities [sequences, main's vocabulary]."""
    own: list[torch.Tensor | None]
    """Each member's own log-probabilities [sequences, vocabulary]."""
    comparison: Comparison | None
    """For a policy that learns from it, and for traces."""
    speaking: torch.Tensor
    """Which members have an output, bool [sequences, members]."""
    weights: torch.Tensor
    """How much each counts [sequences, members]."""

    @property
    def outputs(self) -> Outputs:
        """What traces are made of."""
        return Outputs(self.own, self.logprobs, self.speaking, self.weights, self.comparison)


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
        self._gate = gate
        self._takes_part = [i == main or weight > 0 for i, weight in enumerate(weights.describe())]
        self._predicted = all(
            predicts_prompts(member) for member, takes_part in zip(members, self._takes_part, strict=True) if takes_part
        )
        self.factory = SequenceFactory(members, main, self._takes_part)
        self._strategy = strategy
        self._vocabulary = members[main].tokenizer.vocabulary
        self._reporter = TokenReporter(members, main)
        self._recorder = TraceRecorder(members, main, self._takes_part)
        self._forwards = [
            MemberRunner(m, number, is_main=number == main, on_member_error=on_member_error)
            for number, m in enumerate(members)
        ]

    def start(self, prompt: str | Sequence[Message], params: SamplingParams) -> EnsembleSequence:
        """See `SequenceFactory.create`."""
        sequence = self.factory.create(prompt, params)
        sequence.record = self._mixer.first()
        return sequence

    def forget(self) -> None:
        """Makes the members forget what they have computed: it may be half of something."""
        for member in self._members:
            forget(member)

    @property
    def reads_prompts(self) -> bool:
        """See `WeightPolicy.reads_prompts`."""
        return self._mixer.reads_prompts

    def waits_for_likelihood(self, sequence: EnsembleSequence) -> bool:
        """Whether the policy weighs members by the prompt, and some member has yet to run this one for that."""
        unweighed = self.reads_prompts and self._predicted and sequence.prompt_likelihood is None
        return unweighed and not all(forward.knows_prompt(sequence) for forward in self._forwards)

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
        waits, before = self.waits_for_likelihood(sequence), self._ids_run()
        if self.reads_prompts:
            self._weigh_prompts([sequence])
        if waits:
            return max(1, *(ran - held for ran, held in zip(self._ids_run(), before, strict=True)))
        return max(forward.prefill(sequence, limit) for forward in self._forwards)

    @torch.inference_mode()
    def step(self, sequences: Sequence[EnsembleSequence]) -> None:
        """Gives each sequence its next token, or ends it; a sequence in which something fails ends with the error."""
        # 1) Every member runs what is pending.
        if self.reads_prompts:
            self._weigh_prompts(sequences)
        going = [sequence for sequence in sequences if not (sequence.ended or self._fills_window(sequence))]
        said = self._run(going)
        alive = [place for place, sequence in enumerate(going) if not sequence.ended]
        going, said = [going[place] for place in alive], [s.only(alive) for s in said]
        if going:
            self._conclude(going, said)

    def _ids_run(self) -> list[int]:
        """Returns how many ids each member has run."""
        return [member.work.ids_run for member in self._members]

    def _weigh_prompts(self, sequences: Sequence[EnsembleSequence]) -> None:
        """Reads new prompts, and finds which members each answer needs, if the policy weighs them by the prompt."""
        for sequence in sequences:
            if sequence.prompt_likelihood is None:
                sequence.prompt_likelihood = self._prompt_likelihood(sequence)
        for sequence, needed in zip(sequences, self._mixer.needed(_prompts(sequences)).tolist(), strict=True):
            sequence.need(needed)

    def _prompt_likelihood(self, sequence: EnsembleSequence) -> PromptLikelihood:
        """Returns how likely the members find a prompt; nothing is run where that could not be compared."""
        if not self._predicted:
            return PromptLikelihood.unknown(len(self._members))
        return comparable([forward.prompt_likelihood(sequence) for forward in self._forwards])

    def _run(self, sequences: Sequence[EnsembleSequence]) -> list[MemberLogits]:
        """Returns each member's logits. Members that are not asked keep their ids pending, and run them later."""
        if self._gate is None:
            return self._run_all(self._forwards, sequences)
        own = self._forwards[self._main].run(sequences)
        asked: set[int] = set()
        if own.logits is not None:
            opened = self._gate.opens(torch.log_softmax(own.logits, dim=-1)).tolist()
            asked = {place for place, is_open in zip(own.at, opened, strict=True) if is_open}
        others = [forward for n, forward in enumerate(self._forwards) if n != self._main]
        said = self._run_all(others, sequences, asked)
        return [*said[: self._main], own, *said[self._main :]]

    @staticmethod
    def _run_all(
        forwards: Sequence[MemberRunner], sequences: Sequence[EnsembleSequence], asked: Collection[int] | None = None
    ) -> list[MemberLogits]:
        """Runs members, all that compute elsewhere at the same time."""
        for forward in forwards:
            forward.begin(sequences, asked)
        return [forward.run(sequences, asked) for forward in forwards]

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

    def _fused(self, sequences: Sequence[EnsembleSequence], said: Sequence[MemberLogits]) -> _Fused | None:
        """Returns the fused distributions, or None if fusing fails; a sequence that is alone then ends."""
        try:
            return self._fuse(sequences, said)
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
        together: _Fused,
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

    def _fuse(self, sequences: Sequence[EnsembleSequence], said: Sequence[MemberLogits]) -> _Fused:
        """Fuses the members' logits into one distribution.

        A member without logits in a sequence (it waits for the rest of a character, or was dropped) abstains there.
        """
        main_logits = said[self._main].logits
        assert main_logits is not None, "main has logits in every sequence that continues"
        speaking = torch.zeros(len(sequences), len(self._members), dtype=torch.bool)
        for number, one in enumerate(said):
            speaking[one.at, number] = True
        logprobs = [_spread(one, len(sequences)) for one in said]
        heard = partial(self._heard, sequences)
        traced = any(sequence.params.trace for sequence in sequences)
        comparison = self._mixer.compare(logprobs, speaking, heard, always=traced)
        record = torch.tensor([sequence.record for sequence in sequences], dtype=torch.float32)
        prompts = None
        if self.reads_prompts:
            prompts = _prompts(sequences)
        fused, weights = self._mixer.mix(WeighingInputs(logprobs, speaking, record, comparison, prompts), heard)
        alone = weights[:, self._main] == weights.sum(-1)
        scores = main_logits if bool(alone.all()) else fused
        scaled = [sequence.sampler.needs_history for sequence in sequences]
        if scores is fused and any(scaled):
            scores = self._on_logits(fused, main_logits, logprobs[self._main], scaled)
        if bool(alone.any()) and scores is not main_logits:
            scores = torch.where(alone[:, None].to(fused.device), main_logits, scores)
        return _Fused(scores, fused, logprobs, comparison, speaking, weights)

    @staticmethod
    def _on_logits(
        fused: torch.Tensor, logits: torch.Tensor, logprobs: torch.Tensor | None, scaled: Sequence[bool]
    ) -> torch.Tensor:
        """Returns fused log-probabilities, in some sequences shifted to the scale of main's logits.

        The others keep their bits, so that rounding does not depend on their neighbours.

        Args:
            fused: [sequences, main's vocabulary].
            logits: Main's, of the same shape.
            logprobs: Main's own, made of these.
            scaled: Whether each sequence is shifted.
        """
        assert logprobs is not None, "main never abstains"
        shift = logits.amax(-1, keepdim=True) - logprobs.amax(-1, keepdim=True)  # [sequences, 1]
        return fused + torch.where(torch.tensor(scaled, device=shift.device)[:, None], shift, 0.0)

    @staticmethod
    def _heard(sequences: Sequence[EnsembleSequence], member: int) -> list[Heard]:
        """Returns the end of a member's text in each sequence."""
        heard = []
        for sequence in sequences:
            part = sequence.member_sequences[member]
            heard.append(
                Heard(0, None, (), cut=False)
                if part is None
                else Heard(
                    part.ids[-1],
                    None if part.holds_blank else part.logits_before,
                    sequence.token_ids,
                    cut=part.cut,
                    dummy=part.has_dummy,
                    held=part.holds_blank,
                    trail=part.trail,
                )
            )
        return heard

    @staticmethod
    def _own(said: MemberLogits, logprobs: torch.Tensor | None, place: int) -> torch.Tensor | None:
        return logprobs[place] if logprobs is not None and place in said.at else None


def _prompts(sequences: Sequence[EnsembleSequence]) -> PromptLikelihoods:
    """Returns how likely the members find the prompts, see `WeighingInputs.prompts`."""
    known = [likely for sequence in sequences if (likely := sequence.prompt_likelihood) is not None]
    assert len(known) == len(sequences), "prompts are weighed before anything is fused"
    found = PromptLikelihoods.of(known)
    gone = torch.tensor([[part is None for part in sequence.member_sequences] for sequence in sequences])
    return PromptLikelihoods(found.nats.masked_fill(gone, -torch.inf), found.bytes)


def _spread(said: MemberLogits, sequences: int) -> torch.Tensor | None:
    """Returns a member's log-probabilities [sequences, vocabulary]; unused zeros where it has no logits."""
    if said.logits is None:
        return None
    values = torch.log_softmax(said.logits, dim=-1)
    if len(said.at) == sequences:
        return values
    at = torch.tensor(said.at, device=values.device)
    return values.new_zeros(sequences, values.shape[-1]).index_copy(0, at, values)
