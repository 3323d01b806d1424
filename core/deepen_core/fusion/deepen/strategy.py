"""The strategies `"deepen"` and `"deepen-paper"`: relative spaces of soft rows, and the search in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import Self

from deepen_core.config import FusionConfig
from deepen_core.errors import ConfigurationError
from deepen_core.fusion.anchors.segmentation import segmentations_of
from deepen_core.fusion.anchors.shared_tokens import Anchors, check_common_tokens, common_tokens
from deepen_core.fusion.anchors.token_healing import Healer, healers_of
from deepen_core.fusion.base import Fusion, MemberFacts, StepInputs
from deepen_core.fusion.deepen.averaging import AveragingFusion
from deepen_core.fusion.deepen.exact_fusion import ExactFusion, check_room
from deepen_core.fusion.deepen.relative_space import RelativeSpace
from deepen_core.fusion.deepen.sparse_fusion import DeepenFusion
from deepen_core.fusion.diagnostics import AVERAGE_LIMIT, shared_token_limits
from deepen_core.members.base import Embedded, Member, has_embeddings
from deepen_core.progress import Steps
from deepen_core.results import FusionInfo, SpaceInfo

_WEAK_SELF_MASS = 0.1


class DeepenStrategy(Fusion):
    """Averages in the relative space, and searches for main's distribution that projects to the average.

    Args:
        spaces: The members' relative spaces over the same anchors.
        main: The number of the member whose vocabulary is used.
        config: Search and its limits.
        healers: A token healer per member, None for members without one; empty for none at all.
        members: The members, for reports; empty for none.
        anchors: The shared tokens, for reports.

    Attributes:
        spaces: As given.
    """

    steps_of_member = 1

    def __init__(
        self,
        spaces: Sequence[RelativeSpace],
        main: int,
        config: FusionConfig,
        healers: Sequence[Healer | None] = (),
        *,
        members: Sequence[Member] = (),
        anchors: Anchors | None = None,
    ) -> None:
        super().__init__(main)
        self.spaces = list(spaces)
        self._config = config
        average: type[AveragingFusion] = ExactFusion if config.exact else DeepenFusion
        self._average = average(spaces, main, config, healers)
        self._members = list(members)
        self._anchors = anchors

    @classmethod
    def check(cls, members: Sequence[MemberFacts], config: FusionConfig) -> None:
        """See `Fusion.check`."""
        if without := next((m.name for m in members if not m.embedded), None):
            raise _no_embeddings(without)
        vocabularies = [m.vocabulary for m in members]
        check_common_tokens(vocabularies, [m.name for m in members])
        if config.exact:
            check_room([v.size for v in vocabularies], [m.device for m in members], len(common_tokens(vocabularies)))

    @classmethod
    def build(cls, members: Sequence[Member], main: int, config: FusionConfig, steps: Steps) -> Self:
        """See `Fusion.build`."""
        embedded = [_embedded(member) for member in members]
        anchors = Anchors.of_members(members)
        spaces = []
        for place, member in enumerate(embedded):
            with steps.doing(f"{member.name}: calibrating"):
                spaces.append(_space(member, anchors, place, config))
        with steps.doing("preparing the fusion"):
            healers = healers_of(members, segmentations_of(members), main, anchors) if config.healing else []
            return cls(spaces, main, config, healers, members=members, anchors=anchors)

    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        return self._average.combine(inputs)

    def describe(self, counted: Sequence[int]) -> FusionInfo:
        """See `Fusion.describe`."""
        spaces = [
            SpaceInfo(s.temperature, s.self_mass, s.effective_support, s.rows_built, s.bytes_held) for s in self.spaces
        ]
        taking_part = [self._members[number] for number in counted]
        tokens = self._anchors.tokens if self._anchors is not None else []
        limits = shared_token_limits(taking_part, self._members[self._main], tokens)
        return FusionInfo(
            anchors=len(tokens),
            bytes_held=sum(space.bytes_held for space in spaces),
            limits=[*limits, AVERAGE_LIMIT] if limits else [],
            spaces=spaces,
        )

    def warnings(self, counted: Sequence[int]) -> list[str]:
        """See `Fusion.warnings`."""
        if len(counted) < 2:
            return []
        calibrated = self._config.temperature == "auto"
        remedy = "No temperature can sharpen such similar embeddings." if calibrated else 'Use temperature="auto".'
        return [
            f"The relative space of {self._members[number].name!r} carries little signal: the median anchor keeps "
            f"{self.spaces[number].self_mass:.3f} of its mass, but fusion needs at least {_WEAK_SELF_MASS}. {remedy}"
            for number in counted
            if self.spaces[number].self_mass < _WEAK_SELF_MASS
        ]


def _embedded(member: Member) -> Embedded:
    if not has_embeddings(member):
        raise _no_embeddings(member.name)
    return member


def _no_embeddings(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"Member {name!r} has no embeddings, by which the strategies 'deepen' and 'deepen-paper' compare tokens: "
        "choose fusion='bytes', fusion='union' or fusion='product', or leave the member out."
    )


def _space(member: Embedded, anchors: Anchors, place: int, config: FusionConfig) -> RelativeSpace:
    by_prefix = config.unshared == "prefix"
    return RelativeSpace(
        member.embeddings,
        anchors.ids[place],
        fixed=anchors.fixed_columns(member.tokenizer.vocabulary, member.vocabulary_size, by_prefix=by_prefix),
        temperature=config.temperature,
        target_self_mass=config.target_self_mass,
        entries=config.row_entries,
    )
