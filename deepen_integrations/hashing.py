"""A text embedding that needs no model: every word is a fixed pseudo-random direction."""

from __future__ import annotations

import hashlib
import math
import re

DIMENSION = 512
"""Default length of a vector."""
_WORD = re.compile(r"\w+")
_FUNCTION_WORDS = frozenset(
    "a an and are as at be by did do does for from had has have he her his how i in is it my of on or s she that the"
    " their they this to was what when where which who whose why will with would you your".split()
)
"""English words that carry little meaning."""
_ENTRIES = 8
"""Signed entries of the vector per word; words that collide in one entry still differ in the others."""


def hashed_vector(text: str, dimension: int = DIMENSION) -> list[float]:
    """Returns the unit vector of a text. It is the same in every process.

    Function words count only if there are no other words, and punctuation only if there are no words at all: the
    cosine of a zero vector is undefined.

    Args:
        text: Word order and meaning are ignored.
        dimension: Length of the vector.
    """
    vector = [0.0] * dimension
    words = _WORD.findall(text.lower())
    telling = [word for word in words if word not in _FUNCTION_WORDS]
    for word in telling or words or [text.strip()]:
        digest = hashlib.blake2b(word.encode(), digest_size=4 * _ENTRIES).digest()
        for place in range(0, len(digest), 4):
            number = int.from_bytes(digest[place : place + 4], "big")
            vector[number // 2 % dimension] += 1 - 2 * (number % 2)
    length = math.hypot(*vector) or 1.0
    return [entry / length for entry in vector]
