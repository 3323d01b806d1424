"""Re-exports `Vocabulary` of `deepen_core.tokenization.vocabulary` under its old path."""

from deepen_core.tokenization.vocabulary import Vocabulary

__all__ = ["Vocabulary"]
