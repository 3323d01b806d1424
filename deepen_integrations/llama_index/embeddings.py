"""A text embedding for LlamaIndex that needs no model."""

from __future__ import annotations

from llama_index.core.base.embeddings.base import BaseEmbedding

from deepen_integrations.hashing import DIMENSION, hashed_vector


class HashingEmbedding(BaseEmbedding):
    """A toy for demos and tests: texts that share words have similar vectors.

    The same text has the same vector in every process. Word order, word forms and meaning are ignored: to search texts
    of your own, use an embedding model, such as by `HuggingFaceEmbedding` of `llama-index-embeddings-huggingface`.
    """

    dimension: int = DIMENSION
    """Length of a vector."""
    model_name: str = "deepen-hashing"

    @classmethod
    def class_name(cls) -> str:
        """The name in serialized form."""
        return "HashingEmbedding"

    def _get_text_embedding(self, text: str) -> list[float]:
        return hashed_vector(text, self.dimension)

    def _get_query_embedding(self, query: str) -> list[float]:
        return hashed_vector(query, self.dimension)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return hashed_vector(query, self.dimension)
