"""`"product"`: multiplies the members' distributions over the tokens that all of them share.

Agreement prevails: a token is probable only if no member finds it improbable. The target of `ColumnFusion` is the
weighted geometric mean `q ~ prod_i c_i ^ w_i`, with a little of main's columns mixed into the others', so that no
member can rule out a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.fusion.column_fusion import TINY, ColumnFusion


class ProductFusion(ColumnFusion):
    """The weighted geometric mean of the members' distributions; for arguments see `ColumnFusion`."""

    limit = (
        "The product favours what no member finds improbable. What only one member knows prevails only where the "
        "others leave it some probability; where they are confident of something else, it is outvoted."
    )

    def _log_mean(self, told: Sequence[torch.Tensor | None], own: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        floor, found = self._config.floor, torch.zeros_like(own)
        for member, mass in enumerate(told):
            if mass is not None:
                mixed = own if mass is own else torch.lerp(mass, own, floor)
                found.addcmul_(weights[:, member, None], mixed.clamp_min(TINY).log())
        return found
