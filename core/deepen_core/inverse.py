"""Re-exports `adamw_search` and `em_search` of `deepen_core.fusion.deepen.search` under their old path."""

from deepen_core.fusion.deepen.search import adamw_search, em_search

__all__ = ["adamw_search", "em_search"]
