"""A text embedding for LangChain that needs no model."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from deepen_integrations.hashing import DIMENSION, hashed_vector


class HashingEmbeddings(Embeddings):
    """A toy for demos and tests: texts that share words have similar vectors.

    The same text has the same vector in every process. Word order, word forms and meaning are ignored: to search texts
    of your own, use an embedding model, such as by `HuggingFaceEmbeddings` of `langchain-huggingface`.

    Args:
        dimension: Length of a vector.
    """

    def __init__(self, dimension: int = DIMENSION) -> None:
        self.dimension = dimension

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Returns a vector for each text."""
        return [hashed_vector(text, self.dimension) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Returns the vector of a query, computed as for any text."""
        return hashed_vector(text, self.dimension)
