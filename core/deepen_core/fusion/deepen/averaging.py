"""What every fusion strategy offers, and what all that average in the relative space share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch

from deepen_core.config import FusionConfig
from deepen_core.fusion.anchors.token_healing import Healing
from deepen_core.fusion.deepen.relative_space import RelativeSpace


class Fusion(Protocol):
    """Makes one distribution over main's vocabulary of the members' distributions."""

    @property
    def spaces(self) -> Sequence[RelativeSpace]:
        """The relative space of each member, for reports."""
        ...

    def fuse(
        self,
        logprobs: Sequence[torch.Tensor | None],
        weights: torch.Tensor,
        healing: Sequence[Healing | None] = (),
    ) -> torch.Tensor:
        """Fuses a batch of rows.

        Args:
            logprobs: For each member the log-probabilities of all rows [rows, vocabulary of the member], float32; None
                if the member abstains in every row. What stands in a row where its weight is zero is not looked at.
            healing: For each member what it may still have meant, see `Healer`; empty for none.
            weights: float32 [rows, members] on the CPU; scaled here to sum to one in each row.

        Returns:
            Fused log-probabilities over main's vocabulary [rows, vocabulary], normalised, on main's device. Where main
            alone has weight they are main's own, bit for bit.
        """
        ...


_TINY = 1e-20


class AveragingFusion(ABC):
    """A strategy that averages in the relative space and searches main's distribution that projects to the average.

    Args:
        spaces: The members' relative spaces over the same anchors.
        main: Which member's vocabulary is spoken.
        config: Search and its limits.
    """

    def __init__(self, spaces: Sequence[RelativeSpace], main: int, config: FusionConfig) -> None:
        self._spaces = list(spaces)
        self._main = main
        self._config = config

    @property
    def spaces(self) -> Sequence[RelativeSpace]:
        """The relative space of each member."""
        return self._spaces

    def fuse(
        self,
        logprobs: Sequence[torch.Tensor | None],
        weights: torch.Tensor,
        healing: Sequence[Healing | None] = (),
    ) -> torch.Tensor:
        """See `Fusion.fuse`."""
        main = self._of_main(logprobs)
        shares = weights / weights.sum(-1, keepdim=True)  # [rows, members]
        mixed = (shares[:, self._main] < 1.0).nonzero()[:, 0]
        if len(mixed) == 0:
            return main
        healed = list(healing) or [None] * len(logprobs)
        if len(mixed) == len(main):
            return self._combine(logprobs, shares, healed)
        chosen = [None if p is None else p[mixed.to(p.device)] for p in logprobs]
        fused = self._combine(chosen, shares[mixed], [None if h is None else h.taken(mixed) for h in healed])
        return main.index_copy(0, mixed.to(main.device), fused)

    @abstractmethod
    def _combine(
        self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        """Fuses rows in which others than main have a share too.

        Args:
            logprobs: For each member [rows, vocabulary]; None if it abstains.
            shares: [rows, members], each row sums to one.
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
        """The weighted average of the members' columns [rows, columns] over what all of them can know.

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
