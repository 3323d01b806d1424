"""`common_tokens`, where it has always been; it lives in `deepen_core.fusion.anchors.shared_tokens`."""

from deepen_core.fusion.anchors.shared_tokens import common_tokens

__all__ = ["common_tokens"]
