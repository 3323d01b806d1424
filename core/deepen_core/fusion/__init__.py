"""How several distributions become one."""

from __future__ import annotations

from collections.abc import Sequence

from deepen_core.config import FusionConfig
from deepen_core.fusion.base import Fusion
from deepen_core.fusion.deepen import DeepenFusion
from deepen_core.fusion.exact import ExactFusion, check_room
from deepen_core.relative import RelativeSpace

__all__ = ["DeepenFusion", "ExactFusion", "Fusion", "check_room", "make_fusion"]


def make_fusion(spaces: Sequence[RelativeSpace], main: int, config: FusionConfig) -> Fusion:
    """The strategy of a configuration.

    Args:
        spaces: The members' relative spaces over the same anchors.
        main: Which member's vocabulary is spoken.
        config: Search and its limits.

    Raises:
        ConfigurationError: If `exact` is wanted, and the matrices do not fit into memory.
    """
    return (ExactFusion if config.exact else DeepenFusion)(spaces, main, config)
