"""A task by the answers that each member gives to it alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deepen_core.fusion.policies import WeighingInputs, WeightPolicy
from deepen_core.fusion.prompts import PromptLikelihoods


@dataclass(frozen=True)
class JudgedTask:
    """How each member answers the items of a task alone.

    Attributes:
        name: The name of the task.
        rights: 1 or 0 for each member and item, or a translation's chrF, float32 [items, members].
        prompts: How likely the members find each item's prompt; None if no policy asks for that.
    """

    name: str
    rights: torch.Tensor
    prompts: PromptLikelihoods | None = None

    def values(self, policy: WeightPolicy) -> list[float]:
        """Returns for each item the mean of the members' rights by their weights.

        This is what answers are worth if one member gives each, drawn by these weights: nothing is fused.

        Args:
            policy: Weighs the members by nothing but the prompt.
        """
        everyone = torch.ones(self.rights.shape, dtype=torch.bool)
        step = WeighingInputs([], everyone, torch.zeros(self.rights.shape), prompts=self.prompts)
        found: list[float] = (policy.weights(step) * self.rights).sum(-1).tolist()
        return found
