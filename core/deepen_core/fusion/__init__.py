"""How several distributions become one. Importing this package does not load torch; looking up a strategy does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from deepen_core.config import StrategyOptions

if TYPE_CHECKING:
    from deepen_core.fusion.base import Fusion


def strategy_of(config: StrategyOptions) -> type[Fusion]:
    """Returns the strategy class that some options belong to."""
    module, _, name = config.implementation.partition(":")
    strategy: type[Fusion] = getattr(import_module(module), name)
    return strategy
