"""`"product"`: the members' distributions are multiplied, over the tokens that all of them share.

What they agree on prevails: a token is probable only if no member finds it improbable. No embedding is read, and there
is nothing to search. Shapes: distributions are [sequences, vocabulary], columns [sequences, columns] (see
`deepen_core.fusion.anchors.columns`). A step:

1. Each member's mass is summed by column: its tokens at the anchor they are, or at the longest one they begin with.
2. Other members' columns are healed, and mixed with a little of main's, so that none of them can forbid a token.
3. The weighted geometric mean over the columns that all can know is the target `q ~ prod_i c_i ^ w_i`.
4. Main's tokens follow their column: `p(t) ~ p_main(t) q(column of t) / c_main(column of t)`.

Control tokens are for main to decide: they, and tokens without a column, keep the probability that main gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import Self

from deepen_core.config import ProductConfig
from deepen_core.fusion.anchors.columns import TokenColumns
from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.fusion.anchors.token_healing import Healer, healers_of
from deepen_core.fusion.base import BuildContext, Fusion, MemberFacts, StepInputs
from deepen_core.fusion.diagnostics import shared_token_limits
from deepen_core.members.base import Member
from deepen_core.results import FusionInfo

_TINY = 1e-30  # a member that may forbid a token makes it this improbable

PRODUCT_LIMIT = (
    "The product favours what no member finds improbable. What one member alone knows prevails only where the others "
    "leave it some probability; where they are sure of something else, it is outvoted."
)


class ProductFusion(Fusion):
    """The weighted geometric mean of the members' distributions, over shared tokens.

    Args:
        columns: The column of each token, for each member.
        main: The number of the member whose vocabulary is used.
        config: The strategy's options.
        healers: One per member that listens to shorter tokens than its own, None for the others; empty for none.
        members: The members, for reports; empty for none.
        anchors: What they share, for reports.
    """

    def __init__(
        self,
        columns: Sequence[TokenColumns],
        main: int,
        config: ProductConfig,
        healers: Sequence[Healer | None] = (),
        *,
        members: Sequence[Member] = (),
        anchors: Anchors | None = None,
    ) -> None:
        super().__init__(main)
        self._columns = list(columns)
        self._config = config
        self._healers = list(healers) or [None] * len(columns)
        self._members = list(members)
        self._anchors = anchors

    @classmethod
    def check(cls, members: Sequence[MemberFacts], config: ProductConfig) -> None:  # noqa: ARG003  any will do
        """See `Fusion.check`."""
        Anchors.shared_by([m.vocabulary for m in members], [m.name for m in members])

    @classmethod
    def build(cls, members: Sequence[Member], main: int, config: ProductConfig, context: BuildContext) -> Self:
        """See `Fusion.build`."""
        with context.steps.doing("preparing the fusion"):
            anchors = Anchors.of_members(members)
            columns = [anchors.columns_of(number, member) for number, member in enumerate(members)]
            healers = healers_of(members, main, anchors) if config.healing else []
            return cls(columns, main, config, healers, members=members, anchors=anchors)

    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        main, known = inputs.of(self._main), self._columns[self._main].columns.unknown
        # 1) What main gives to the columns that all can know: the anchors and stop, [sequences, known].
        own = self._mass(self._main, main)[:, :known]
        own = own / own.sum(-1, keepdim=True).clamp_min(_TINY)
        possible = own > 0
        # 2) and 3) The logarithm of the target.
        weights = inputs.weights.to(main.device)
        target = torch.zeros_like(own)
        for member, logprobs in enumerate(inputs.logprobs):
            if logprobs is None:
                continue
            columns = own if member == self._main else self._told(member, logprobs, inputs, own)
            target += weights[:, member, None] * columns.clamp_min(_TINY).log()
        target = torch.log_softmax(target.masked_fill(~possible, -torch.inf), dim=-1)
        # 4) Main's tokens follow their column; those without one that all can know stay as they are.
        factor = main.new_zeros(len(main), self._columns[self._main].columns.gathered)
        factor[:, :known] = torch.where(possible, target - own.clamp_min(_TINY).log(), 0.0)
        return torch.log_softmax(main + self._columns[self._main].scatter_back(factor), dim=-1)

    def _mass(self, member: int, logprobs: torch.Tensor) -> torch.Tensor:
        """A member's probabilities by column, [sequences, gathered columns]."""
        columns = self._columns[member]
        mass = logprobs.new_empty(len(logprobs), columns.columns.gathered)
        columns.sum_by_column(logprobs.exp(), into=mass)
        return mass

    def _told(self, member: int, logprobs: torch.Tensor, inputs: StepInputs, own: torch.Tensor) -> torch.Tensor:
        """What another member gives to the columns that all can know, [sequences, known], with main's share in it."""
        columns, healer = self._columns[member].columns, self._healers[member]
        told = self._mass(member, logprobs)[:, : columns.width]
        healing = healer.heal(inputs.heard(member)) if healer is not None else None
        if healing is not None:
            told = healing.applied(told)
        told = told[:, : columns.unknown].to(own.device)
        # What it gives to tokens of its own, which main cannot say, is for main to distribute.
        rest = (1.0 - told.sum(-1, keepdim=True)).clamp_min(0.0)
        floor = self._config.floor
        return (1.0 - floor) * (told + rest * own) + floor * own

    def describe(self, counted: Sequence[int]) -> FusionInfo:
        """See `Fusion.describe`."""
        tokens = self._anchors.tokens if self._anchors is not None else []
        limits = shared_token_limits([self._members[n] for n in counted], self._members[self._main], tokens)
        return FusionInfo(
            anchors=len(tokens),
            bytes_held=sum(columns.bytes_held for columns in self._columns),
            limits=[*limits, PRODUCT_LIMIT] if limits else [],
        )
