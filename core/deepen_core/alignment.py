"""Canonical re-tokenisation of a growing text for every member but the one that speaks it.

A member shall hold the ids that its tokenizer gives for the whole text, at every step. Encoding the whole text for
each new token costs more the longer the text is; instead only the text behind a **safe boundary** is encoded again.
A place between two characters is safe if no text behind it can change the ids before it:

- no vocabulary entry holds the two characters side by side, so no merge ever crosses the place, and
- if a pre-tokenizer cuts the text by rules of its own, the place is one where such rules cut whatever follows: a
  blank behind a visible character, a letter behind a lone newline.

A Unigram model over uncut text has no safe place: it compares sums of scores from the start of the text, and rounding
may break a tie either way. For such a tokenizer the whole text is encoded each time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from deepen_core.backend import SPACE_MARK, Backend
from deepen_core.vocabulary import byte_table

# Look for a new boundary once so many characters wait behind the last one.
_TAIL_CHARACTERS = 48

_LOCAL_NORMALIZERS = frozenset({"Prepend", "Replace"})
_LOCAL_CUTS = frozenset({"ByteLevel", "Metaspace"})


class Boundaries:
    """Where a text may be cut so that the ids before the cut are final.

    Args:
        backend: The tokenizer.
        kind: `Vocabulary.kind` of the same tokenizer.
    """

    def __init__(self, backend: Backend, kind: str) -> None:
        self._byte_level = kind == "byte-level"
        self._code = {byte: char for char, byte in byte_table().items()} if self._byte_level else {}
        added = {t["content"] for t in backend.added_tokens}
        self._pairs = _pairs(piece for piece in backend.pieces if piece not in added)
        self._added_pairs = _pairs(t["content"] for t in backend.added_tokens if not t["special"])
        self._singles = {piece for piece in backend.pieces if len(piece) == 1}
        self._fuses_unknown = not self._byte_level and not backend.model.get("byte_fallback")
        by_rules = any(p["type"] not in _LOCAL_CUTS or p.get("use_regex") for p in backend.pre_tokenizers)
        by_words = any(p["type"] == "Metaspace" and p.get("split", True) for p in backend.pre_tokenizers)
        local = all(n["type"] in _LOCAL_NORMALIZERS for n in backend.normalizers)
        # A normalizer that looks at neighbours (NFC, lower case) is only trusted at blanks, where it changes nothing.
        self._only_blanks = by_rules or by_words or not local
        self._none = backend.model_type == "Unigram" and not (by_rules or by_words)
        # WordPiece looks at one word at a time; its pieces hold no blank, and no newline rule is known for it.
        self._newlines = self._byte_level and by_rules

    def last(self, text: str, start: int, stop: int | None = None) -> int | None:
        """The last safe place in `text` behind `start` and before `stop`, as an index, or None."""
        if self._none:
            return None
        for place in range((len(text) if stop is None else stop) - 1, start, -1):
            if self._safe(text, place):
                return place
        return None

    def _safe(self, text: str, place: int) -> bool:
        before, after = text[place - 1], text[place]
        if self._only_blanks and not self._is_cut(text, place):
            return False
        if unicodedata.category(after)[0] == "M" or before + after in self._added_pairs:
            return False
        left, right = self._symbol(before, -1), self._symbol(after, 0)
        if left + right in self._pairs:
            return False
        return not self._fuses_unknown or left in self._singles or right in self._singles

    def _is_cut(self, text: str, place: int) -> bool:
        before, after = text[place - 1], text[place]
        if after == " " or (after == "\t" and self._newlines):
            return not before.isspace()
        if not self._newlines or before != "\n" or not after.isalpha():
            return False
        return place >= 2 and not text[place - 2].isspace()

    def _symbol(self, char: str, end: int) -> str:
        """The character as vocabulary entries spell its first (0) or last (-1) part."""
        if self._byte_level:
            return self._code[char.encode("utf-8", "surrogatepass")[end]]
        return SPACE_MARK if char == " " else char


def _pairs(pieces: Iterable[str]) -> set[str]:
    """Every two characters that stand side by side in a piece."""
    return {piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1)}


class AlignedText:
    """The canonical ids of a text that grows at its end.

    Args:
        backend: The member's tokenizer.
        boundaries: Its safe places.
        text: What the text is already.
        inside: Whether the text follows a special token rather than starting a document.
    """

    def __init__(self, backend: Backend, boundaries: Boundaries, text: str = "", *, inside: bool = False) -> None:
        self._backend = backend
        self._boundaries = boundaries
        self._inside = inside
        self._final: list[int] = []  # ids of the text before `_cut`; nothing that follows changes them
        self._open = ""  # the text from `_guard` on, encoded again each time
        self._at_start = True  # whether `_open` starts the text
        self._cut = 0  # the safe place in `_open`; what stands before it is only there as context
        self._skip = 0  # ids that the context takes
        self._tail: list[int] = []
        self.append(text)

    @property
    def ids(self) -> list[int]:
        """The ids of the whole text."""
        return self._final + self._tail

    def append(self, text: str) -> tuple[int, list[int]]:
        """Adds text at the end.

        Returns:
            A position and the ids from there on; the ids before it are as they were before the call.
        """
        unchanged = len(self._final)
        if text:
            self._open += text
            self._tail = self._encode(self._open)[self._skip :]
            if len(self._open) - self._cut > _TAIL_CHARACTERS:
                self._advance()
        return unchanged, self._final[unchanged:] + self._tail

    def _encode(self, text: str) -> list[int]:
        plain = not self._at_start or not self._inside
        return self._backend.encode(text) if plain else self._backend.encode_inside(text)

    def _advance(self) -> None:
        """Moves the cut to the last safe place, with the stretch before it as context."""
        cut = self._boundaries.last(self._open, self._cut)
        if cut is None:
            return
        settled = self._encode(self._open[:cut])[self._skip :]
        guard = self._boundaries.last(self._open, self._cut, cut) or self._cut
        context = self._open[guard:cut]
        skip = len(self._backend.encode(context))
        rest = self._backend.encode(self._open[guard:])[skip:]
        # The rules say that this always holds; a tokenizer of an unknown kind that breaks them keeps its long tail.
        if settled + rest != self._tail:
            return
        self._final += settled
        self._open, self._cut, self._skip = self._open[guard:], cut - guard, skip
        self._tail, self._at_start = rest, False
