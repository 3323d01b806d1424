"""`"product"`: multiplies the members' distributions over the tokens that all of them share.

Agreement prevails: a token is probable only if no member finds it improbable. No embeddings are read, and there is no
search. Shapes: distributions are [sequences, vocabulary], columns [sequences, columns] (see
`deepen_core.fusion.anchors.columns`). In each step:

1. Sum each member's mass by column: each token counts for its anchor, or for the longest anchor that it begins with.
2. Heal the other members' columns, and mix in a little of main's, so that no member can rule out a token.
3. The weighted geometric mean over the columns that all members can know is the target `q ~ prod_i c_i ^ w_i`.
4. Main's tokens follow their column: `p(t) ~ p_main(t) q(column of t) / c_main(column of t)`.

Main alone decides on its control tokens: they, and tokens without a column, keep the probability that main gives them.
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

_TINY = 1e-30  # probability to which a member can lower a token if nothing of main's is mixed in

PRODUCT_LIMIT = (
    "The product favours what no member finds improbable. What only one member knows prevails only where the others "
    "leave it some probability; where they are confident of something else, it is outvoted."
)


class ProductFusion(Fusion):
    """The weighted geometric mean of the members' distributions, over shared tokens.

    Args:
        columns: The column of each token, for each member.
        main: The number of the member whose vocabulary is used.
        config: The strategy's options.
        healers: A token healer per member, None for members without one; empty for none at all.
        members: The members, for reports; empty for none.
        anchors: The shared tokens, for reports.
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
    def check(cls, members: Sequence[MemberFacts], config: ProductConfig) -> None:  # noqa: ARG003  any options will do
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
        # 1) Main's mass on the columns that all members can know, the anchors and stop: [sequences, known].
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
        # 4) Main's tokens follow their column; tokens in none of these columns keep their probability.
        factor = main.new_zeros(len(main), self._columns[self._main].columns.gathered)
        factor[:, :known] = torch.where(possible, target - own.clamp_min(_TINY).log(), 0.0)
        return torch.log_softmax(main + self._columns[self._main].scatter_back(factor), dim=-1)

    def _mass(self, member: int, logprobs: torch.Tensor) -> torch.Tensor:
        """Returns a member's probabilities by column, [sequences, gathered columns]."""
        columns = self._columns[member]
        mass = logprobs.new_empty(len(logprobs), columns.columns.gathered)
        columns.sum_by_column(logprobs.exp(), into=mass)
        return mass

    def _told(self, member: int, logprobs: torch.Tensor, inputs: StepInputs, own: torch.Tensor) -> torch.Tensor:
        """Returns another member's mass on the columns that all can know, [sequences, known], with some of main's."""
        columns, healer = self._columns[member].columns, self._healers[member]
        told = self._mass(member, logprobs)[:, : columns.width]
        healing = healer.heal(inputs.heard(member)) if healer is not None else None
        if healing is not None:
            told = healing.applied(told)
        told = told[:, : columns.unknown].to(own.device)
        # The mass of tokens that main cannot generate is distributed as main's own.
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
