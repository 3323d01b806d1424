"""Weights that follow which member predicts the text better, and lose little where one of them is the better by far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from deepen_core.fusion.policies import StaticWeights, WeighingInputs

_DISCOUNT = 0.98
_ALONE = 0.1
_SWITCH = 0.01


class AdaptiveWeights(StaticWeights):
    """Weights that follow which member predicts the text better: slowly, but for one that is the better by far.

    Slow weights are `a_i ~ s_i exp(rate * r_i)`, where the record r_i is the log-likelihood of the answer's tokens
    under a member, relative to main's, in nats, and a token counts 0.98 times as much after each further one. This is
    the exponentially weighted forecaster with discounted losses (Cesa-Bianchi and Lugosi, "Prediction, Learning, and
    Games", 2006, sections 2.2 and 2.11). The rate is small, so that members of about equal worth stay together: their
    mean is better than either.

    Where one member is much better, such a mean is worse than that member. So the slow weights and each member alone
    are experts in turn, weighed by the probability that they have given the answer so far, as the fixed-share
    forecaster does (Herbster and Warmuth, "Tracking the best expert", 1998): `w = v_0 a + sum_i v_i e_i`. Here v starts
    at 0.9 and 0.1 s_i; after a token t it is multiplied by `sum_i a_i p_i(t) / p_m(t)` and `p_i(t) / p_m(t)`, scaled to
    sum to one, and moved by 0.01 towards where it started, so that no member takes over an answer for good.

    An answer under a constraint keeps the shares: how probable a member finds what it must say tells little of it.

    Args:
        weights: The members' shares s before anything is known, one per member, summing to one.
        rate: How much a nat of the record counts.
    """

    compares: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def __init__(self, weights: Sequence[float], rate: float = 0.05) -> None:
        super().__init__(weights)
        self._rate = rate
        self._prior = [1.0 - _ALONE, *(_ALONE * share for share in self._given)]

    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """See `WeightPolicy.weights`."""
        members = len(self._given)
        slow = torch.softmax(self._weights.log() + self._rate * step.record[:, :members], dim=-1)
        experts = step.record[:, members:]  # [sequences, 1 + members]
        return experts[:, :1] * slow + experts[:, 1:]

    def first(self) -> list[float]:
        """See `WeightPolicy.first`: the members' records r, then the experts' weights v."""
        return [0.0] * len(self._given) + self._prior

    def after(self, record: Sequence[float], relative: Sequence[float]) -> list[float]:
        """See `WeightPolicy.after`."""
        members = len(self._given)
        records, experts = record[:members], record[members:]
        most = max(records)
        slow = [share * math.exp(self._rate * (nats - most)) for share, nats in zip(self._given, records, strict=True)]
        found = [math.exp(nats) for nats in relative]
        together = sum(weight * ratio for weight, ratio in zip(slow, found, strict=True)) / sum(slow)
        grown = [weight * ratio for weight, ratio in zip(experts, [together, *found], strict=True)]
        scale = (1.0 - _SWITCH) / sum(grown)
        return [
            *(_DISCOUNT * old + new for old, new in zip(records, relative, strict=True)),
            *(scale * weight + _SWITCH * start for weight, start in zip(grown, self._prior, strict=True)),
        ]
