"""Fuses what the members say in one step, for all its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from deepen_core.engine.member_runner import MemberLogits
from deepen_core.engine.prompt_likelihood import prompts_of
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.engine.trace_recorder import Outputs
from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.mixing import Mixer
from deepen_core.fusion.policies import WeighingInputs


class FusedStep(NamedTuple):
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


def fuse(sequences: Sequence[EnsembleSequence], said: Sequence[MemberLogits], mixer: Mixer, main: int) -> FusedStep:
    """Fuses the members' logits into one distribution.

    A member without logits in a sequence (it waits for the rest of a character, or was dropped) abstains there.

    Args:
        sequences: The sequences of the step; main has logits in each of them.
        said: Each member's logits.
        mixer: Weighs and fuses them.
        main: The number of the main member.
    """
    main_logits = said[main].logits
    assert main_logits is not None, "main has logits in every sequence that continues"
    speaking = torch.zeros(len(sequences), len(said), dtype=torch.bool)
    for number, one in enumerate(said):
        speaking[one.at, number] = True
    logprobs = [_spread(one, len(sequences)) for one in said]
    heard = partial(_heard, sequences)
    traced = any(sequence.params.trace for sequence in sequences)
    comparison = mixer.compare(logprobs, speaking, heard, always=traced)
    record = torch.tensor([sequence.record for sequence in sequences], dtype=torch.float32)
    prompts = prompts_of(sequences) if mixer.reads_prompts else None
    fused, weights = mixer.mix(WeighingInputs(logprobs, speaking, record, comparison, prompts), heard)
    alone = weights[:, main] == weights.sum(-1)
    scores = main_logits if bool(alone.all()) else fused
    scaled = [sequence.sampler.needs_history for sequence in sequences]
    if scores is fused and any(scaled):
        scores = _on_logits(fused, main_logits, logprobs[main], scaled)
    if bool(alone.any()) and scores is not main_logits:
        scores = torch.where(alone[:, None].to(fused.device), main_logits, scores)
    return FusedStep(scores, fused, logprobs, comparison, speaking, weights)


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


def _spread(said: MemberLogits, sequences: int) -> torch.Tensor | None:
    """Returns a member's log-probabilities [sequences, vocabulary]; unused zeros where it has no logits."""
    if said.logits is None:
        return None
    values = torch.log_softmax(said.logits, dim=-1)
    if len(said.at) == sequences:
        return values
    at = torch.tensor(said.at, device=values.device)
    return values.new_zeros(sequences, values.shape[-1]).index_copy(0, at, values)
