"""How much each member counts in a step: one small class per policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class WeighingInputs:
    """What a policy can base its weights on in a step.

    Attributes:
        logprobs: For each member its log-probabilities [sequences, vocabulary of the member], float32; None if it
            abstains in every sequence.
        speaking: bool [sequences, members] on the CPU: which members have an output. Where this is false, the values in
            `logprobs` are meaningless.
    """

    logprobs: Sequence[torch.Tensor | None]
    speaking: torch.Tensor


class WeightPolicy(ABC):
    """Computes new weights of the members in each step."""

    @abstractmethod
    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """Returns how much each member counts in each sequence.

        Returns:
            float32 [sequences, members] on the CPU, none negative. The weights of members that abstain are ignored, and
            the rest is scaled to sum to one.
        """
        ...

    @abstractmethod
    def describe(self) -> list[float]:
        """Returns one weight per member for reports, summing to one: the weights before any output is known.

        A member of weight 0 is never run, unless it is main.
        """
        ...


class StaticWeights(WeightPolicy):
    """The same weights in every step.

    Args:
        weights: One per member, summing to one.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._given = list(weights)
        self._weights = torch.tensor(self._given, dtype=torch.float32)

    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """See `WeightPolicy.weights`."""
        return self._weights.expand(len(step.speaking), -1)

    def describe(self) -> list[float]:
        """See `WeightPolicy.describe`."""
        return list(self._given)
