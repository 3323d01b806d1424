"""Who counts how much in a step: one small class per policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class WeighingInputs:
    """What a policy may look at in a step.

    Attributes:
        logprobs: For each member its log-probabilities [sequences, vocabulary of the member], float32; None if it
            abstains in every sequence.
        speaking: bool [sequences, members] on the CPU: who has said something. What stands in `logprobs` where this is
            false means nothing.
    """

    logprobs: Sequence[torch.Tensor | None]
    speaking: torch.Tensor


class WeightPolicy(ABC):
    """Weighs the members anew in each step."""

    @abstractmethod
    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """How much each member counts in each sequence.

        Returns:
            float32 [sequences, members] on the CPU, none negative. What it gives to members that abstain is left out,
            and the rest is scaled to sum to one.
        """
        ...

    @abstractmethod
    def describe(self) -> list[float]:
        """One weight per member for reports, summing to one: what they are before anything was said.

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
