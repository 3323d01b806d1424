"""A vocabulary sorted by bytes, in which the tokens that begin with some bytes are neighbours."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from deepen_core.tokenization.vocabulary import Vocabulary


class ByteOrder:
    """The tokens of a vocabulary in the order of their bytes; control tokens have none, and are left out.

    Args:
        vocabulary: The vocabulary.
        size: Ids from here on are left out, since the model has no logits for them.

    Attributes:
        values: The bytes of each token, sorted. Tokens with the same bytes are neighbours.
        ids: Their ids.
    """

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        found = sorted((value, i) for i in range(size) if (value := vocabulary.token_bytes(i)))
        self.values = [value for value, _ in found]
        self.ids = [token_id for _, token_id in found]

    def beginning_with(self, start: bytes) -> tuple[int, int]:
        """Returns the first of the tokens that begin with some bytes, and the first after them."""
        first = bisect_left(self.values, start)
        after = _after(start)
        return first, len(self.values) if after is None else bisect_left(self.values, after, first)

    def longer_than(self, start: bytes) -> tuple[int, int]:
        """Returns as `beginning_with`, without the tokens that are exactly these bytes."""
        first, stop = self.beginning_with(start)
        return bisect_right(self.values, start, first, stop), stop


def _after(start: bytes) -> bytes | None:
    """Returns the first bytes that sort after all that begin with some; None if there are none."""
    kept = start.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None
