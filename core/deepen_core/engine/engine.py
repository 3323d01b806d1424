"""The parts of an open ensemble: members, their fusion, and the worker that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from deepen_core.config import StrategyOptions
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.worker import Worker
from deepen_core.fusion.base import Fusion
from deepen_core.fusion.gates import Gate
from deepen_core.fusion.main_alone import MainAlone
from deepen_core.fusion.policies import StaticWeights
from deepen_core.members.base import Member
from deepen_core.members.context_budget import ContextBudget


@dataclass(frozen=True)
class Engine:
    """Everything that an ensemble holds while it is open.

    Attributes:
        members: The members in their order.
        main: The number of the member whose vocabulary is used.
        weights: How much each member counts, for reports; they sum to one.
        policy_name: The name of the policy that weighs them.
        gate: Decides where the members other than main are asked; None for everywhere.
        fusion: The strategy.
        fusion_name: The strategy's name.
        fusion_options: The options of the ensemble's strategy, also where a member answers by itself.
        decoder: Steps sequences.
        worker: The thread that decodes.
    """

    members: Sequence[Member]
    main: int
    weights: Sequence[float]
    policy_name: str
    gate: Gate | None
    fusion: Fusion
    fusion_name: str
    fusion_options: StrategyOptions
    decoder: Decoder
    worker: Worker

    @property
    def main_member(self) -> Member:
        """The member whose vocabulary is used."""
        return self.members[self.main]

    @property
    def counted(self) -> list[int]:
        """Numbers of the members that take part: main, and those with a weight."""
        return counted_members(self.main, self.weights)

    @property
    def members_counted(self) -> list[Member]:
        """The members that take part."""
        return [self.members[number] for number in self.counted]

    @cached_property
    def budget(self) -> ContextBudget:
        """How much of a prompt fits all members that take part."""
        return ContextBudget(self.members_counted, self.counted.index(self.main))

    @cached_property
    def members_alone(self) -> list[Engine]:
        """For each member, an engine that has it answer by itself, by the same worker."""
        return [self._alone(number) for number in range(len(self.members))]

    def _alone(self, number: int) -> Engine:
        weights = [float(n == number) for n in range(len(self.members))]
        policy, fusion = StaticWeights(weights), MainAlone(number)
        decoder = Decoder(self.members, number, policy, fusion, MainAlone.name)
        return replace(
            self,
            main=number,
            weights=weights,
            policy_name=policy.label,
            gate=None,
            fusion=fusion,
            fusion_name=MainAlone.name,
            decoder=decoder,
        )


def counted_members(main: int, weights: Sequence[float]) -> list[int]:
    """Numbers of the members that take part: main, and those with a weight."""
    return [number for number, weight in enumerate(weights) if number == main or weight > 0]
