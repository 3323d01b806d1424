"""`relative_matrix`, where it has always been; it lives in `deepen_core.fusion.deepen.relative_space`."""

from deepen_core.fusion.deepen.relative_space import relative_matrix

__all__ = ["relative_matrix"]
