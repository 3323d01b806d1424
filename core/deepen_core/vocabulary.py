"""`Vocabulary`, where it has always been; it lives in `deepen_core.tokenization.vocabulary`."""

from deepen_core.tokenization.vocabulary import Vocabulary

__all__ = ["Vocabulary"]
