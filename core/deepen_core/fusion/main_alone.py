"""A single member that answers by itself: nothing is fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.members.base import Member
from deepen_core.progress import Steps
from deepen_core.results import FusionInfo


class MainAlone(Fusion):
    """Main's own distribution."""

    name: ClassVar[str] = "alone"
    """Its name in reports."""

    @classmethod
    def build(cls, members: Sequence[Member], main: int, config: Any, steps: Steps) -> Self:  # noqa: ARG003  needs none
        """See `Fusion.build`."""
        with steps.doing("preparing the fusion"):
            return cls(main)

    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        return inputs.of(self._main)

    def describe(self, counted: Sequence[int]) -> FusionInfo:  # noqa: ARG002  none are fused
        """See `Fusion.describe`."""
        return FusionInfo()
