"""How several distributions become one. Importing this loads no torch; making a strategy does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepen_core.config import FusionConfig

if TYPE_CHECKING:
    from deepen_core.fusion.deepen.averaging import Fusion
    from deepen_core.fusion.deepen.relative_space import RelativeSpace


def make_fusion(spaces: Sequence[RelativeSpace], main: int, config: FusionConfig) -> Fusion:
    """The strategy of a configuration.

    Args:
        spaces: The members' relative spaces over the same anchors.
        main: Which member's vocabulary is spoken.
        config: Search and its limits.

    Raises:
        ConfigurationError: If `exact` is wanted, and the matrices do not fit into memory.
    """
    from deepen_core.fusion.deepen.exact_fusion import ExactFusion  # noqa: PLC0415  needs torch
    from deepen_core.fusion.deepen.sparse_fusion import DeepenFusion  # noqa: PLC0415  as above

    return (ExactFusion if config.exact else DeepenFusion)(spaces, main, config)
