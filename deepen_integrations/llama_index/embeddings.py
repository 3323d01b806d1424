"""A text embedding that needs no model: every word is a fixed pseudo-random direction."""

from __future__ import annotations

import hashlib
import math
import re

from llama_index.core.base.embeddings.base import BaseEmbedding

_WORD = re.compile(r"\w+")
_FUNCTION_WORDS = frozenset(
    "a an and are as at be by did do does for from had has have he her his how i in is it my of on or s she that the"
    " their they this to was what when where which who whose why will with would you your".split()
)
"""English words that say little about what a text is about."""
_ENTRIES = 8
"""So many entries of the vector are a word's, each with a sign: words that meet in one are told apart by others."""


class HashingEmbedding(BaseEmbedding):
    """Texts are near each other when they share words. For demos, tests and small collections.

    The same text has the same vector in every process. Word order and meaning play no role.
    """

    dimension: int = 512
    """Length of a vector."""
    model_name: str = "deepen-hashing"

    @classmethod
    def class_name(cls) -> str:
        """The name in serialized form."""
        return "HashingEmbedding"

    def _get_text_embedding(self, text: str) -> list[float]:
        vector = [0.0] * self.dimension
        for word in _WORD.findall(text.lower()):
            if word not in _FUNCTION_WORDS:
                digest = hashlib.blake2b(word.encode(), digest_size=4 * _ENTRIES).digest()
                for place in range(0, len(digest), 4):
                    number = int.from_bytes(digest[place : place + 4], "big")
                    vector[number // 2 % self.dimension] += 1 - 2 * (number % 2)
        length = math.hypot(*vector) or 1.0
        return [entry / length for entry in vector]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)
