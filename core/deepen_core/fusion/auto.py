"""`"auto"`: one of the other strategies, by what is measured of the members' tokens.

The rule, from the tables of `docs/bytes.md`, in which `"bytes"` is the best strategy or within noise of it for every
pair but one:

1. `"bytes"` if the members share no token: the others need some.
2. `"deepen"` if main's tokens are much longer than another member's: of each of main's, such a member says only the
   beginning, and averaging over shared tokens costs least.
3. `"bytes"` otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from typing_extensions import Self

from deepen_core.config import PRESETS
from deepen_core.fusion import strategy_of
from deepen_core.fusion.anchors.shared_tokens import common_tokens
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.diagnostics import LENGTH_RATIO
from deepen_core.members.base import Member
from deepen_core.progress import Steps
from deepen_core.results import FusionInfo


class AutoFusion(Fusion):
    """Does what the strategy does that is chosen for the members.

    Args:
        main: The number of the member whose vocabulary is used.
        chosen: The strategy.
        why: Its name, and why it was chosen.
    """

    compares_tokens = True

    def __init__(self, main: int, chosen: Fusion, why: str) -> None:
        super().__init__(main)
        self._chosen = chosen
        self._why = why

    @classmethod
    def build(cls, members: Sequence[Member], main: int, config: Any, steps: Steps) -> Self:  # noqa: ARG003  no options
        """See `Fusion.build`."""
        name, why = choose(members, main)
        chosen = PRESETS[name]
        return cls(main, strategy_of(chosen).build(members, main, chosen, steps), f"{name}, since {why}")

    def compare(self, inputs: StepInputs) -> Comparison | None:
        """See `Fusion.compare`."""
        return self._chosen.compare(inputs)

    def logprobs_of(self, inputs: StepInputs, token_ids: Sequence[int]) -> torch.Tensor:
        """See `Fusion.logprobs_of`."""
        return self._chosen.logprobs_of(inputs, token_ids)

    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        return self._chosen._combine(inputs)  # noqa: SLF001 (it stands in for this one)

    def describe(self, counted: Sequence[int]) -> FusionInfo:
        """See `Fusion.describe`."""
        return replace(self._chosen.describe(counted), chosen=self._why)

    def warnings(self, counted: Sequence[int]) -> list[str]:
        """See `Fusion.warnings`."""
        return self._chosen.warnings(counted)


def choose(members: Sequence[Member], main: int) -> tuple[str, str]:
    """Returns the name of the strategy for some members, and the facts that decide.

    Args:
        members: The members.
        main: The number of the member whose vocabulary is used.
    """
    if not common_tokens([member.tokenizer.vocabulary for member in members]):
        return "bytes", "the members share no token"
    own = members[main].tokenizer.bytes_per_token
    shortest = min(members, key=lambda member: member.tokenizer.bytes_per_token)
    ratio = own / shortest.tokenizer.bytes_per_token
    told = f"the tokens of {members[main].name!r}, {own:.1f} bytes on a sample, are"
    if ratio > LENGTH_RATIO:
        return "deepen", f"{told} {ratio:.1f} times as long as those of {shortest.name!r} (above {LENGTH_RATIO})"
    if len(members) < 2 or shortest is members[main]:
        return "bytes", f"{told} no longer than those of the other members"
    return "bytes", f"{told} only {ratio:.1f} times as long as those of {shortest.name!r} (at most {LENGTH_RATIO})"
