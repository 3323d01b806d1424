"""What every fusion strategy offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from deepen_core.healing import Healing
from deepen_core.relative import RelativeSpace


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
