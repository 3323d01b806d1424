"""A text embedding for LangChain that needs no model."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from deepen_integrations.hashing import DIMENSION, hashed_vector


class HashingEmbeddings(Embeddings):
    """Texts are near each other when they share words. For demos, tests and small collections.

    The same text has the same vector in every process. Word order and meaning play no role.

    Args:
        dimension: Length of a vector.
    """

    def __init__(self, dimension: int = DIMENSION) -> None:
        self.dimension = dimension

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text."""
        return [hashed_vector(text, self.dimension) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question, which is that of any text."""
        return hashed_vector(text, self.dimension)
