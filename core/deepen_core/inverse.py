"""`adamw_search` and `em_search`, where they have always been; they live in `deepen_core.fusion.deepen.search`."""

from deepen_core.fusion.deepen.search import adamw_search, em_search

__all__ = ["adamw_search", "em_search"]
