"""How several distributions become one. Importing this loads no torch; asking for a strategy does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from deepen_core.config import StrategyOptions

if TYPE_CHECKING:
    from deepen_core.fusion.base import Fusion


def strategy_of(config: StrategyOptions) -> type[Fusion]:
    """The class of the strategy that some options are for."""
    module, _, name = config.implementation.partition(":")
    strategy: type[Fusion] = getattr(import_module(module), name)
    return strategy
