"""Weights that follow which member predicts the whole context better: the prompt, and the answer so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from deepen_core.fusion.adaptive_weights import AdaptiveWeights
from deepen_core.fusion.policies import PerplexityWeights, WeighingInputs
from deepen_core.fusion.prompts import PromptLikelihoods


class ContextWeights(AdaptiveWeights):
    """Adaptive weights, times how likely each member finds the prompt: `w_i ~ exp(rate * span * l_i) a_i`.

    `l_i` is the log-likelihood of the prompt as in `PerplexityWeights`, in nats a byte, and `a_i` the adaptive weight.
    The prompt counts as much as a long answer that is predicted as well does in adaptive weights: there the last 50
    tokens of about four bytes count, and each of their nats 0.05. So a member that knows such texts has most of the
    weight from the first token on, and those that find them about as likely stay together: a difference of 0.1 nats a
    byte is a factor of 2.7, and of 55 in `PerplexityWeights`. A shorter prompt counts as itself.

    Args:
        weights: The members' shares before anything is known, one per member, summing to one.
        span: Number of the prompt's bytes that count.
        rate: How much a nat counts, of the prompt and of the record.
    """

    reads_prompts: ClassVar[bool] = True

    def __init__(self, weights: Sequence[float], span: float = 200.0, rate: float = 0.05) -> None:
        super().__init__(weights, rate)
        self._by_prompt = PerplexityWeights(weights, span, rate)

    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """See `WeightPolicy.weights`."""
        # Both have the shares in them, which count once; a member without a share has no say in either.
        found = super().weights(step) * self._by_prompt.weights(step) / self._weights.clamp_min(_TINY)
        return found / found.sum(-1, keepdim=True).clamp_min(_TINY)  # zeros where none that is left has a share

    def needed(self, prompts: PromptLikelihoods) -> torch.Tensor:
        """See `WeightPolicy.needed`."""
        return self._by_prompt.needed(prompts)


_TINY = 1e-30
