"""Re-exports `relative_matrix` of `deepen_core.fusion.deepen.relative_space` under its old path."""

from deepen_core.fusion.deepen.relative_space import relative_matrix

__all__ = ["relative_matrix"]
