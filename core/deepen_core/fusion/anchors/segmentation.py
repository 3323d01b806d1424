r"""How a tokenizer would cut a text: which tokens could follow those that a member has just said.

Main says "\n" where no blanks follow, for it has a token of a newline with three blanks. A member that hears the
newline and goes on with four blanks speaks of a text that main, by the token it chose, has ruled out. If such tokens
were made probable, main would be led into a text that it has never seen cut this way, and knows nothing about.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from deepen_core.members.base import Member
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.vocabulary import Vocabulary

WORD = b"a"
"""The beginning of a word, before which a tokenizer may cut blanks otherwise than at the end of a text."""

_TAIL = 4  # tokens before the next one that are encoded with it
_REMEMBERED = 2**16


class Segmentation:
    """A tokenizer, asked how it would go on after some of its tokens.

    Args:
        vocabulary: The tokenizer's vocabulary.
        backend: The tokenizer.

    Attributes:
        vocabulary: As given.
    """

    def __init__(self, vocabulary: Vocabulary, backend: Backend) -> None:
        self.vocabulary = vocabulary
        self._backend = backend
        self._tails: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._after: dict[tuple[tuple[int, ...], bytes], bytes | None] = {}

    @cached_property
    def _inside(self) -> frozenset[int]:
        """Pairs of neighbouring bytes inside tokens, as `first << 8 | second`; no token crosses other seams."""
        tokens = self.vocabulary.tokens
        data = np.frombuffer(b"".join(tokens), np.uint8).astype(np.int32)
        ends = np.fromiter(map(len, tokens), np.int64, len(tokens)).cumsum()
        inside = np.ones(len(data) - 1, np.bool_)
        inside[ends[:-1] - 1] = False
        return frozenset(np.unique((data[:-1] << 8 | data[1:])[inside]).tolist())

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of a token; empty for one without."""
        return self.vocabulary.token_bytes(token_id) or b""

    def can_continue(self, said: Sequence[int], value: bytes) -> bool:
        """Whether the tokenizer's own encoding of some tokens and a value begins with these tokens.

        Blanks at the end of a text are often cut otherwise than before a word, so then that counts as well.

        Args:
            said: Ids of the text so far.
            value: The bytes that follow, at least one.
        """
        last = self.token_bytes(said[-1]) if said else b""
        if not last or (last[-1] << 8 | value[0]) not in self._inside:
            return True
        tail = self._tail(tuple(said[-_TAIL:]))
        if not tail:
            return True
        if not is_text(self.vocabulary.join(tail) + value) or self.after(tail, value) is not None:
            return True
        return value[-1:].isspace() and self.after(tail, value + WORD) is not None

    def after(self, said: tuple[int, ...], value: bytes) -> bytes | None:
        """Returns the token that follows some others in the encoding of them and a value.

        Args:
            said: The last ids of a text; empty for an encoding of the value alone.
            value: The bytes that follow.

        Returns:
            None if the encoding does not begin with these ids, or if the whole is not text.
        """
        key = (said, value)
        if key not in self._after:
            if len(self._after) >= _REMEMBERED:
                self._after.clear()
            ids = self._ids_behind(said, self.vocabulary.join(said) + value)
            self._after[key] = self.token_bytes(ids[0]) if ids else None
        return self._after[key]

    def firsts(self, values: Sequence[bytes]) -> list[int | None]:
        """Returns the first token of the encoding of each of many values inside a text.

        Args:
            values: Each at least one byte, as a token of another tokenizer may stand for.

        Returns:
            Ids; None for a value that is not text, and where the encoding begins with other bytes than the value.
        """
        texts = {place: value.decode() for place, value in enumerate(values) if is_text(value)}
        places = list(texts)

        def begins(number: int, token_id: int) -> bool:
            begun = self.token_bytes(token_id)
            return bool(begun) and values[places[number]].startswith(begun)

        found: list[int | None] = [None] * len(values)
        for place, first in zip(places, self._backend.first_behind(list(texts.values()), begins), strict=True):
            found[place] = first
        return found

    def _tail(self, said: tuple[int, ...]) -> tuple[int, ...]:
        """Returns as many of the last of some ids as the tokenizer cuts alike by themselves; empty if none."""
        if said not in self._tails:
            if len(self._tails) >= _REMEMBERED:
                self._tails.clear()
            tails = (said[start:] for start in range(len(said)))
            found = (t for t in tails if self._ids_behind(t, self.vocabulary.join(t)) is not None)
            self._tails[said] = next(found, ())
        return self._tails[said]

    def _ids_behind(self, said: tuple[int, ...], data: bytes) -> list[int] | None:
        """Returns the ids that follow some in the encoding of a text; None if it does not begin with them."""
        if not is_text(data):
            return None
        readings = self._backend.encode_behind(data.decode())
        ids = next((ids for ids in readings if self.vocabulary.join(ids) == data), None)
        return ids[len(said) :] if ids is not None and tuple(ids[: len(said)]) == said else None


def segmentations_of(members: Sequence[Member]) -> list[Segmentation]:
    """Returns how each member cuts a text."""
    return [Segmentation(m.tokenizer.vocabulary, m.tokenizer.backend) for m in members]


def is_text(data: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
