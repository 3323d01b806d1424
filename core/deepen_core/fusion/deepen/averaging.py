"""What strategies that average in the relative space share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from deepen_core.config import FusionConfig
from deepen_core.fusion.anchors.token_healing import Healer, Healing
from deepen_core.fusion.base import StepInputs
from deepen_core.fusion.deepen.relative_space import RelativeSpace

_TINY = 1e-20


class AveragingFusion(ABC):
    """A strategy that averages in the relative space and searches main's distribution that projects to the average.

    Args:
        spaces: The members' relative spaces over the same anchors.
        main: Which member's vocabulary is spoken.
        config: Search and its limits.
        healers: One per member that listens to shorter tokens than its own, None for the others; empty for none.
    """

    def __init__(
        self,
        spaces: Sequence[RelativeSpace],
        main: int,
        config: FusionConfig,
        healers: Sequence[Healer | None] = (),
    ) -> None:
        self._spaces = list(spaces)
        self._main = main
        self._config = config
        self._healers = list(healers) or [None] * len(spaces)

    def combine(self, inputs: StepInputs) -> torch.Tensor:
        """Fuses sequences in which others than main have a share too; weights sum to one in each."""
        healing = [
            None if healer is None or logprobs is None else healer.heal(inputs.heard(member))
            for member, (healer, logprobs) in enumerate(zip(self._healers, inputs.logprobs, strict=True))
        ]
        return self._combine(inputs.logprobs, inputs.weights, healing)

    @abstractmethod
    def _combine(
        self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        """Fuses sequences in which others than main have a share too.

        Args:
            logprobs: For each member [sequences, vocabulary]; None if it abstains.
            shares: [sequences, members], summing to one in each sequence.
            healing: For each member, None if there is nothing to correct.
        """
        ...

    def _of_main(self, logprobs: Sequence[torch.Tensor | None]) -> torch.Tensor:
        main = logprobs[self._main]
        assert main is not None, "main never abstains"
        return main

    def _target(
        self, projected: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        """The weighted average of the members' columns [sequences, columns] over what all of them can know.

        Main's own control tokens keep the mass that main gives them. What another member gives to its own goes to
        main's distribution instead, in that member's share.
        """
        own = projected[self._main]
        assert own is not None
        known, room = own[:, :-1], own[:, :-1].sum(-1, keepdim=True)
        left = shares[:, self._main, None].to(own.device)
        average = torch.zeros_like(own)
        for member, mass in enumerate(projected):
            if mass is None or member == self._main:
                continue
            correction, share = healing[member], shares[:, member, None]
            told = (mass if correction is None else correction.applied(mass)).to(own.device)
            if bool((share == 0).any()):  # whatever stands in a row where a member abstains
                told = told.masked_fill((share == 0).to(own.device), 0.0)
            average.addcmul_(told, share.to(own.device))
            left = left + share.to(own.device) * told[:, -1:]
        others = average[:, :-1].addcmul_(known, left / room.clamp_min(_TINY))
        others.mul_(room / others.sum(-1, keepdim=True).clamp_min(_TINY))
        average[:, -1:] = own[:, -1:]
        return average


def normalised(found: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Log-probabilities that sum to one; the start in rows where nothing main can say is near the target."""
    lost = ~torch.isfinite(found.amax(-1, keepdim=True))
    if bool(lost.any()):
        found = torch.where(lost, start, found)
    return torch.log_softmax(found, dim=-1)
