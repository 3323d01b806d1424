"""Re-exports `common_tokens` of `deepen_core.fusion.anchors.shared_tokens` under its old path."""

from deepen_core.fusion.anchors.shared_tokens import common_tokens

__all__ = ["common_tokens"]
