"""The common part of strategies that fuse the members' mass by column: no embeddings are read, nothing is searched.

Shapes: distributions are [sequences, vocabulary], columns [sequences, columns] (see
`deepen_core.fusion.anchors.columns`). In each step:

1. Sum each member's mass by column: each token counts for its anchor, or for the longest anchor that it begins with.
2. Heal the other members' columns.
3. A mean over the columns that all members can know is the target; which mean, a subclass says.
4. Main's tokens follow their column: `p(t) ~ p_main(t) q(column of t) / c_main(column of t)`. Of all distributions
   whose columns are the target, this is the one nearest to main's, by the KL divergence.

Main alone decides on its control tokens: they, and tokens without a column, keep the probability that main gives them.
What a member gives to tokens that main cannot generate is distributed as main's own distribution, within its share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from typing_extensions import Self

from deepen_core.fusion.anchors.blank_columns import BlankColumns
from deepen_core.fusion.anchors.columns import TokenColumns
from deepen_core.fusion.anchors.main_tokens import MainTokens
from deepen_core.fusion.anchors.segmentation import Segmentation, segmentations_of
from deepen_core.fusion.anchors.shared_tokens import Anchors, check_common_tokens
from deepen_core.fusion.anchors.token_healing import Healer, healers_of
from deepen_core.fusion.base import Fusion, MemberFacts, StepInputs
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.diagnostics import shared_token_limits
from deepen_core.members.base import Member
from deepen_core.progress import Steps
from deepen_core.results import FusionInfo

TINY = 1e-30  # least probability of a column of which a logarithm is taken
_OUT_OF_REACH = 1e4  # nats by which a target loses what main cannot follow


class ColumnFusion(Fusion):
    """Fuses by column; subclasses define the mean.

    Args:
        columns: The column of each token, for each member.
        main: The number of the member whose vocabulary is used.
        config: The strategy's options.
        healers: A token healer per member, None for members without one; empty for none at all.
        blanks: What each member's tokens of blanks stand for, None for members without any; empty for none at all.
        members: The members, for reports; empty for none.
        anchors: The shared tokens, for reports.
    """

    limit: str
    """What this mean cannot do."""
    compares_tokens = True

    def __init__(
        self,
        columns: Sequence[TokenColumns],
        main: int,
        config: Any,
        healers: Sequence[Healer | None] = (),
        *,
        blanks: Sequence[BlankColumns | None] = (),
        members: Sequence[Member] = (),
        anchors: Anchors | None = None,
    ) -> None:
        super().__init__(main)
        self._columns = list(columns)
        self._config = config
        self._healers = list(healers) or [None] * len(columns)
        self._blanks = list(blanks) or [None] * len(columns)
        self._members = list(members)
        self._anchors = anchors

    @classmethod
    def check(cls, members: Sequence[MemberFacts], config: Any) -> None:  # noqa: ARG003  any options will do
        """See `Fusion.check`."""
        check_common_tokens([m.vocabulary for m in members], [m.name for m in members])

    @classmethod
    def build(cls, members: Sequence[Member], main: int, config: Any, steps: Steps) -> Self:
        """See `Fusion.build`."""
        with steps.doing("preparing the fusion"):
            anchors = Anchors.of_members(members)
            columns = [anchors.columns_of(number, member) for number, member in enumerate(members)]
            cuts = segmentations_of(members) if config.healing else []
            healers = healers_of(members, cuts, main, anchors) if cuts else []
            blanks = _blanks_of(members, cuts, main, anchors, columns[main]) if cuts else []
            return cls(columns, main, config, healers, blanks=blanks, members=members, anchors=anchors)

    @torch.inference_mode()
    def compare(self, inputs: StepInputs) -> Comparison:
        """See `Fusion.compare`."""
        part, line_of = inputs.of_several(self._main)
        return Comparison(self._main, self._told(part), line_of, self._columns[self._main].of)

    def _told(self, inputs: StepInputs) -> list[torch.Tensor | None]:
        """Returns each member's mass on the columns that all can know; see `Comparison.told`."""
        # 1) Main's mass, [sequences, known].
        known = self._columns[self._main].columns.unknown
        own = self._mass(self._main, inputs.of(self._main))[:, :known]
        own = own / own.sum(-1, keepdim=True).clamp_min(TINY)
        # 2) The others'.
        return [
            own if member == self._main else None if logprobs is None else self._others(member, logprobs, inputs, own)
            for member, logprobs in enumerate(inputs.logprobs)
        ]

    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        told = self._told(inputs) if inputs.comparison is None else inputs.comparison.told
        main, factor = inputs.of(self._main), self._factor(told, inputs.weights)
        # 4) Main's tokens follow their column; tokens in none of these columns keep their probability. All columns
        #    together keep the mass that main gives them, so that the whole still sums to one.
        every = F.pad(factor, (0, self._columns[self._main].columns.gathered - factor.shape[1]))
        return self._columns[self._main].scatter_back(every).add_(main)

    def _factor(self, told: Sequence[torch.Tensor | None], weights: torch.Tensor) -> torch.Tensor:
        """Returns the logarithm by which main's probability of each column changes, [sequences, known]."""
        own = told[self._main]
        assert own is not None, "main never abstains"
        target = torch.log_softmax(self._log_target(told, own, weights), dim=-1)
        return target.sub_(own.clamp_min(TINY).log_()).mul_(own.sign())  # 0 where main has no mass

    def _log_target(
        self, told: Sequence[torch.Tensor | None], own: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Returns the logarithm of the target up to a constant per sequence, [sequences, known]."""
        # 3) The mean, where main can follow it. Masks take several times as long as arithmetic.
        mean = self._log_mean(told, own, weights.to(own.device))
        return mean.add_(own.sign().sub_(1.0), alpha=_OUT_OF_REACH)

    @torch.inference_mode()
    def logprobs_of(self, inputs: StepInputs, token_ids: Sequence[int]) -> torch.Tensor:
        """See `Fusion.logprobs_of`.

        All columns together keep the mass that main gives them, so nothing is summed over main's vocabulary.
        """
        main = inputs.of(self._main)
        found = main.gather(1, torch.tensor(list(token_ids), device=main.device)[:, None])[:, 0]
        shares = inputs.weights / inputs.weights.sum(-1, keepdim=True)
        mixed = (shares[:, self._main] < 1.0).nonzero()[:, 0]
        if not len(mixed):
            return found
        told: Sequence[torch.Tensor | None]
        if inputs.comparison is None:
            told = self._told(StepInputs(inputs.logprobs, shares, inputs.heard).only(mixed))
        else:
            told = inputs.comparison.only(mixed).told
        own = told[self._main]
        assert own is not None, "main never abstains"
        target = self._log_target(told, own, shares[mixed])
        at = mixed.to(main.device)
        columns = self._columns[self._main].of[torch.tensor(list(token_ids), device=main.device)[at]]
        inside = columns.clamp_max(own.shape[1] - 1)[:, None]
        before = own.gather(1, inside)[:, 0]
        after = target.gather(1, inside)[:, 0] - target.logsumexp(-1)
        changes = (columns < own.shape[1]) & (before > 0)
        return found.index_add(0, at, torch.where(changes, after - before.clamp_min(TINY).log(), 0.0))

    @abstractmethod
    def _log_mean(self, told: Sequence[torch.Tensor | None], own: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns the logarithm of the members' mean, up to a constant per sequence, [sequences, known].

        Args:
            told: Each member's mass by column [sequences, known], summing to one; None for members that abstain in all
                of them; main's where a weight is zero.
            own: Main's among them.
            weights: [sequences, members], summing to one in each sequence.
        """
        ...

    def _mass(self, member: int, logprobs: torch.Tensor) -> torch.Tensor:
        """Returns a member's probabilities by column, [sequences, gathered columns]."""
        columns = self._columns[member]
        mass = logprobs.new_empty(len(logprobs), columns.columns.gathered)
        columns.sum_by_column(logprobs.exp(), into=mass)
        return mass

    def _others(self, member: int, logprobs: torch.Tensor, inputs: StepInputs, own: torch.Tensor) -> torch.Tensor:
        """Returns another member's mass on the columns that all can know, [sequences, known], summing to one."""
        columns, healer, blanks = self._columns[member].columns, self._healers[member], self._blanks[member]
        told = self._mass(member, logprobs)[:, : columns.width].to(own.device)
        idle = (inputs.weights[:, member] == 0).nonzero()[:, 0].to(own.device)
        if len(idle):  # the values of a sequence in which it abstains are meaningless, and there may be many to look at
            told[idle] = F.pad(own[idle], (0, 1))
        if blanks is not None:
            blanks.spread(told, own)
        if healer is not None:
            told = healer.healed(told, inputs.heard(member), own)
        told = told[:, : columns.unknown]
        rest = (1.0 - told.sum(-1, keepdim=True)).clamp_min(0.0)
        return torch.addcmul(told, rest, own)

    def describe(self, counted: Sequence[int]) -> FusionInfo:
        """See `Fusion.describe`."""
        tokens = self._anchors.tokens if self._anchors is not None else []
        limits = shared_token_limits([self._members[n] for n in counted], self._members[self._main], tokens)
        return FusionInfo(
            anchors=len(tokens),
            bytes_held=sum(columns.bytes_held for columns in self._columns),
            limits=[*limits, self.limit] if limits else [],
        )


def _blanks_of(
    members: Sequence[Member], cuts: Sequence[Segmentation], main: int, anchors: Anchors, main_columns: TokenColumns
) -> list[BlankColumns | None]:
    """Returns what each member's tokens of blanks stand for; None for main, and where they stand for themselves."""
    tokens = MainTokens(cuts[main], members[main].vocabulary_size)
    found = [n != main and BlankColumns(its_cuts, tokens, anchors, main_columns.of) for n, its_cuts in enumerate(cuts)]
    return [blanks or None for blanks in found]
