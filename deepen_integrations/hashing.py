"""A vector for a text that needs no model: every word is a fixed pseudo-random direction."""

from __future__ import annotations

import hashlib
import math
import re

DIMENSION = 512
"""Length of a vector, if nothing else is asked for."""
_WORD = re.compile(r"\w+")
_FUNCTION_WORDS = frozenset(
    "a an and are as at be by did do does for from had has have he her his how i in is it my of on or s she that the"
    " their they this to was what when where which who whose why will with would you your".split()
)
"""English words that say little about what a text is about."""
_ENTRIES = 8
"""So many entries of the vector are a word's, each with a sign: words that meet in one are told apart by others."""


def hashed_vector(text: str, dimension: int = DIMENSION) -> list[float]:
    """A text's vector of length one, or of zeros if no word is left. The same in every process.

    Args:
        text: Word order and meaning play no role.
        dimension: Entries of the vector.
    """
    vector = [0.0] * dimension
    for word in _WORD.findall(text.lower()):
        if word not in _FUNCTION_WORDS:
            digest = hashlib.blake2b(word.encode(), digest_size=4 * _ENTRIES).digest()
            for place in range(0, len(digest), 4):
                number = int.from_bytes(digest[place : place + 4], "big")
                vector[number // 2 % dimension] += 1 - 2 * (number % 2)
    length = math.hypot(*vector) or 1.0
    return [entry / length for entry in vector]
