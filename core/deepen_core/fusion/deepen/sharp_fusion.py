"""`"deepen"` with sharp rows: the mean in the relative space where a row is its own anchor, in closed form.

At an infinite temperature the relative row of a shared token has all its mass on that token. Averaging the members'
projections is then averaging by column, and the search back ends after one step of EM, `p <- p * R (q / (p R))`, at a
distribution that projects to the average exactly. No embeddings are needed.

The mean is `q ~ (sum_i w_i c_i^r)^(1/r)`. `r = 1` is the paper's weighted average, in which each member can make a
token probable; in the limit `r -> 0`, the geometric mean, each can make one improbable. Between them lies what is best
on real pairs at equal weights (`benchmarks.real_pairs`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.fusion.column_fusion import TINY, ColumnFusion
from deepen_core.fusion.diagnostics import AVERAGE_LIMIT


class SharpFusion(ColumnFusion):
    """The weighted power mean of the members' distributions; for arguments see `ColumnFusion`."""

    limit = AVERAGE_LIMIT

    def _log_mean(self, told: Sequence[torch.Tensor | None], own: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        power, found = self._config.power, torch.zeros_like(own)
        for member, mass in enumerate(told):
            if mass is not None:
                found.addcmul_(weights[:, member, None], mass if power == 1.0 else mass.pow(power))
        return found.clamp_min_(TINY).log_().div_(power)
