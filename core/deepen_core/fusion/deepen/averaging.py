"""The common part of the strategies that average in the relative space."""

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
    """Averages in the relative space, and searches for the distribution of main's that projects to the average.

    Args:
        spaces: The members' relative spaces over the same anchors.
        main: The number of the member whose vocabulary is used.
        config: Search and its limits.
        healers: A token healer per member, None for members without one; empty for none at all.
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
        self._prepare()

    def _prepare(self) -> None:  # noqa: B027  most need nothing
        """Computes what every step needs."""

    def combine(self, inputs: StepInputs) -> torch.Tensor:
        """Fuses sequences in which members other than main have weight too; weights sum to one in each."""
        main = inputs.of(self._main)
        columns = self._spaces[self._main].columns
        own = main.new_empty(len(main), columns.columns.gathered)
        if any(healer is not None for healer in self._healers):
            columns.sum_by_column(main.exp(), into=own)
        healing = [
            None if healer is None or logprobs is None else healer.heal(inputs.heard(member), own)
            for member, (healer, logprobs) in enumerate(zip(self._healers, inputs.logprobs, strict=True))
        ]
        return self._combine(inputs.logprobs, inputs.weights, healing)

    @abstractmethod
    def _combine(
        self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        """Fuses sequences in which members other than main have weight too.

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
        """Returns the weighted average of the members' columns [sequences, columns] over those that all can know.

        Main's own control tokens keep the mass that main gives them. The mass of another member's control tokens is
        distributed as main's distribution instead, within that member's share.
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
            if bool((share == 0).any()):  # values of a sequence in which the member abstains are meaningless
                told = told.masked_fill((share == 0).to(own.device), 0.0)
            average.addcmul_(told, share.to(own.device))
            left = left + share.to(own.device) * told[:, -1:]
        others = average[:, :-1].addcmul_(known, left / room.clamp_min(_TINY))
        others.mul_(room / others.sum(-1, keepdim=True).clamp_min(_TINY))
        average[:, -1:] = own[:, -1:]
        return average


def normalised(found: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Returns normalised log-probabilities; the start where none of main's tokens is near the target."""
    lost = ~torch.isfinite(found.amax(-1, keepdim=True))
    if bool(lost.any()):
        found = torch.where(lost, start, found)
    return torch.log_softmax(found, dim=-1)
