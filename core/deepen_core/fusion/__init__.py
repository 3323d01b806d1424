"""Strategies that make one next-token distribution of several."""

from deepen_core.fusion.base import Fusion
from deepen_core.fusion.deepen import DeepenFusion

__all__ = ["DeepenFusion", "Fusion"]
