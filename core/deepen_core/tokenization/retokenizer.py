"""Canonical re-tokenisation of the growing text for every member other than main.

At every step, a member must hold the ids that its own tokenizer gives for the whole text. Encoding the whole text for
each new token costs more the longer the text gets, so only the text after a **safe boundary** is encoded again.

Shapes: text [characters]; ids [tokens] = `_final` (fixed) + `_tail` (encoded again at each call of `append`).

1. Append the new text to the open text, encode that again and drop the ids of its context: the new `_tail`.
2. Once more than 48 characters follow the last boundary, look for a later safe one.
3. Move the ids before the new boundary to `_final`. Keep the text between an earlier safe boundary and the new one as
   context, so that the rest is still encoded as it is in the whole text.

A boundary between two characters is safe if no text after it can change the ids before it:

- no vocabulary entry contains the two characters side by side, so no merge crosses the boundary, and
- if the pre-tokenizer splits the text by its own rules, they split the left side the same way whatever follows. This
  holds at a blank after a visible character, at a letter after a single newline, and in scripts without blanks
  (byte-level only) at a letter or a full-width mark after a letter, or a letter after such a mark.

A Unigram model over unsplit text has no safe boundary: it compares sums of scores from the start of the text, and
rounding may break a tie either way. With such a tokenizer the whole text is encoded each time.
"""

from __future__ import annotations

import itertools
import operator
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from deepen_core.tokenization.fast_tokenizer import SPACE_MARK, Backend
from deepen_core.tokenization.vocabulary import byte_table

# Look for a new boundary once more characters than this follow the last one.
_TAIL_CHARACTERS = 48

_WORD = "a"  # the beginning of a word, before which many tokenizers cut blanks otherwise

_LOCAL_NORMALIZERS = frozenset({"Prepend", "Replace"})
_LOCAL_CUTS = frozenset({"ByteLevel", "Metaspace"})
# These change a character of a script without blanks independently of its neighbours, or not at all.
_COMPOSING = frozenset({"NFC", "NFKC"})

# Neighbours in scripts without blanks, and what may surround them, to probe how a pre-tokenizer splits them.
_NEIGHBOURS = ("好人", "好，", "。好", "のア", "ー々", "กข")
_AROUND = ("", "好", "ก", "，", "。」", "a", "aB", "AB", "Ab", " ", "\n", "1", "12", "'s", "!", "\u0300")


class Boundaries:
    """Where a text may be cut so that the ids before the cut cannot change any more.

    Args:
        backend: The tokenizer.
        kind: `Vocabulary.kind` of the same tokenizer.
    """

    def __init__(self, backend: Backend, kind: str) -> None:
        self._byte_level = kind == "byte-level"
        self._code = {byte: char for char, byte in byte_table().items()} if self._byte_level else {}
        added = [t for t in backend.added_tokens if not t["special"]]
        inner = {self._code[b] for b in range(0x80, 0xC0)} if self._byte_level else set()
        normalized = backend.spellings(t["id"] for t in added)
        self._pairs, self._singles = _pairs([*backend.pieces, *normalized], inner)
        self._added_pairs, _ = _pairs(t["content"] for t in added)
        # An added token may swallow the blanks beside it.
        self._strips = any(t["lstrip"] or t["rstrip"] for t in added)
        # Characters without a token merge with their neighbours into one unknown token, or vanish and join these.
        self._fuses_unknown = not self._byte_level and not backend.model.get("byte_fallback")
        has_unknown = backend.model_type != "BPE" or backend.model.get("unk_token")
        self._drops_unknown = self._fuses_unknown and not has_unknown
        self._marks_spaces = kind == "sentencepiece"
        rules = [p for p in backend.pre_tokenizers if not (self._marks_spaces and _cuts_nothing(p, backend))]
        by_rules = any(p["type"] not in _LOCAL_CUTS or p.get("use_regex") for p in rules)
        by_words = backend.model_type != "BPE" and any(p["type"] == "Metaspace" and p.get("split", True) for p in rules)
        local = all(n["type"] in _LOCAL_NORMALIZERS for n in backend.normalizers)
        composes = all(n["type"] in _LOCAL_NORMALIZERS | _COMPOSING for n in backend.normalizers)
        # A normalizer that looks at neighbours (NFC, lower case) is trusted only at blanks, where it changes nothing.
        self._only_blanks = by_rules or by_words or not local
        self._none = backend.model_type == "Unigram" and not (by_rules or by_words)
        # An added token that is matched in normalized text may contain blanks where the original text differs.
        self._none |= not local and any(t["normalized"] and len(t["content"].split()) > 1 for t in added)
        # WordPiece handles one word at a time; its pieces contain no blank, and no newline rule is known for it.
        self._newlines = self._byte_level and by_rules
        self._backend = backend
        self._unspaced, self._restarts, self._cuts_marks = False, False, False
        if self._newlines and composes:
            self._unspaced, self._restarts, self._cuts_marks = _probe_unspaced(backend)

    def last(self, text: str, start: int, stop: int | None = None, *, firm: bool = False) -> int | None:
        """Returns the index of the last safe boundary in `text` after `start` and before `stop`, or None.

        Args:
            text: The text.
            start: Search after this index.
            stop: Search before this index; by default, up to the end of the text.
            firm: Whether encoding must also be able to start there, giving the same ids as in the whole text from the
                next safe boundary on.
        """
        if self._none:
            return None
        for place in range((len(text) if stop is None else stop) - 1, start, -1):
            if self._safe(text, place, firm):
                return place
        return None

    def _safe(self, text: str, place: int, firm: bool) -> bool:
        before, after = text[place - 1], text[place]
        if self._only_blanks and not self._is_cut(text, place, firm):
            return False
        if unicodedata.category(after)[0] == "M" or before + after in self._added_pairs:
            return False
        if self._strips and before.isspace():
            return False
        left, right = self._symbols(before), self._symbols(after)
        ends, starts = range(len(left)), range(1, len(right) + 1)
        if any(left[i:] + right[:j] in self._pairs for i in ends for j in starts):
            return False
        if self._drops_unknown:
            return left in self._singles and right in self._singles
        return not self._fuses_unknown or left in self._singles or right in self._singles

    def _is_cut(self, text: str, place: int, firm: bool) -> bool:
        before, after = text[place - 1], text[place]
        if after == " " or (after == "\t" and self._newlines):
            return not before.isspace()
        if self._newlines and before == "\n" and after.isalpha():
            return place >= 2 and not text[place - 2].isspace()
        kinds = (_unspaced(before), _unspaced(after))
        if not self._unspaced or None in kinds or "letter" not in kinds:
            return False
        if firm and not self._restarts and not (self._cuts_marks and kinds == ("letter", "mark")):
            return False
        return all(self._backend.normalized(c) == c for c in (before, after))

    def _symbols(self, char: str) -> str:
        """The character as vocabulary entries spell it."""
        if self._byte_level:
            return "".join(self._code[b] for b in char.encode("utf-8", "surrogatepass"))
        return SPACE_MARK if char == " " and self._marks_spaces else char


def _pairs(pieces: Iterable[str], inner: Iterable[str] = ()) -> tuple[set[str], set[str]]:
    """Every pair of characters that are adjacent in a piece, and the pieces of one character.

    Args:
        pieces: Vocabulary entries.
        inner: How they spell the continuation bytes of a character. A piece may start or end in the middle of one.
    """
    pieces = list(pieces)
    # All pieces are taken as one text, with a character between them that is in none of them.
    whole = "".join(pieces)
    seam = next(c for c in map(chr, range(0x10FFFF, 0, -1)) if c not in whole)
    text = seam + seam.join(pieces) + seam
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    seams = codes == ord(seam)
    continues = np.zeros(0x110000, bool)
    continues[[ord(c) for c in inner]] = True
    # Where characters begin, the part of one that a piece begins with too; and the seams, where they end.
    begins = np.flatnonzero(~continues[codes] | np.roll(seams, 1))
    inside = ~seams[begins]
    pairs = np.flatnonzero(inside[:-2] & inside[1:-1])  # two in a row, before another one or a seam
    starts, ends = begins[pairs], begins[pairs + 2]
    short = ends - starts == 2
    keys = np.sort(codes[starts[short]] << 21 | codes[starts[short] + 1])  # 21 bits hold any character
    keys = keys[np.diff(keys, prepend=-1) > 0]
    found = set(map(operator.add, _text_of(keys >> 21), _text_of(keys & 0x1FFFFF)))
    longer = zip(starts[~short].tolist(), ends[~short].tolist(), strict=True)
    singles = _text_of(codes[1:-1][seams[:-2] & seams[2:]])
    return found | {text[start:end] for start, end in longer}, set(singles)


def _text_of(codes: np.ndarray) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _cuts_nothing(part: dict[str, Any], backend: Backend) -> bool:
    """Whether a pre-tokenizer splits at blanks, of which the normalizer has left none (Gemma)."""
    return part["type"] == "Split" and part["pattern"] == {"String": " "} and " " not in backend.normalized("a b")


@lru_cache(maxsize=20_000)
def _unspaced(char: str) -> str | None:
    """Whether a character is a letter or a mark of a script that writes no blanks between words."""
    category = unicodedata.category(char)
    if category in ("Lo", "Lm") and not "\u1100" <= char <= "\u11ff":  # parts of Hangul syllables compose
        return "letter"
    return "mark" if category in ("Po", "Ps", "Pe") and char >= "\u3000" else None


def _probe_unspaced(backend: Backend) -> tuple[bool, bool, bool]:
    """Probes how the pre-tokenizer splits two neighbours of a script without blanks, in every surrounding.

    Returns:
        Whether the splits before them are the same whatever follows, whether the splits after them are as if the text
        began with the second one, and whether it always splits between a letter and a mark.
    """
    left_stays = restarts = cuts_marks = True
    for before, pair in itertools.product(_AROUND, _NEIGHBOURS):
        place = len(before) + 1
        seen = set()
        for after in _AROUND:
            cuts = backend.cuts(before + pair + after)
            seen.add(tuple(c for c in cuts if c < place))
            restarts &= [c - place for c in cuts if c > place] == [c for c in backend.cuts(pair[1] + after) if c > 0]
            cuts_marks &= place in cuts or _unspaced(pair[1]) == "letter"
        left_stays &= len(seen) == 1
    return left_stays, restarts, cuts_marks


class AlignedText:
    """The canonical ids of a text that grows at its end.

    Args:
        backend: The member's tokenizer.
        boundaries: Its safe boundaries.
        text: The text so far.
        inside: Whether the text follows a special token rather than starting a document.

    Attributes:
        holds_blank: Whether the ids that `append` has returned last leave out the last blank of the text.
    """

    def __init__(self, backend: Backend, boundaries: Boundaries, text: str = "", *, inside: bool = False) -> None:
        self._backend = backend
        self._boundaries = boundaries
        self._inside = inside
        self._final: list[int] = []  # ids of the text before `_cut`; no later text changes them
        self._open = ""  # the text that is encoded again each time: context, then the text after `_cut`
        self._at_start = True  # whether `_open` starts the text
        self._cut = 0  # the safe boundary in `_open`; the text before it is only context
        self._skip = 0  # number of ids of the context
        self._scanned = 0  # the place in `_open` up to which there is no further boundary
        self._tail: list[int] = []
        self.holds_blank = False
        self.append(text)

    @property
    def ids(self) -> list[int]:
        """The ids of the whole text."""
        return self._final + self._tail

    @property
    def settled(self) -> int:
        """Number of ids, from the first on, that no later text changes; it never falls."""
        return len(self._final)

    def append(self, text: str, *, before_word: bool = False) -> tuple[int, list[int]]:
        """Adds text at the end.

        Args:
            text: The text.
            before_word: Whether a word is about to follow. Of several blanks many tokenizers then cut off the last one,
                which belongs to the word's token: it is left out of the ids, see `holds_blank`.

        Returns:
            A position and the ids from there on; the ids before it are unchanged.
        """
        unchanged = len(self._final)
        if text:
            self._open += text
            self._tail = self._encode(self._open, self._at_start)[self._skip :]
            if len(self._open) - self._cut > _TAIL_CHARACTERS:
                self._advance()
        tail = self._without_blank() if before_word else None
        self.holds_blank = tail is not None
        return unchanged, self._final[unchanged:] + (self._tail if tail is None else tail)

    def _without_blank(self) -> list[int] | None:
        """Returns the ids behind `_final` without the last of several blanks; None if a word would not take it."""
        if not (self._open.endswith(" ") and self._open[-2:-1].isspace()):
            return None
        tail = self._encode(self._open[:-1], self._at_start)[self._skip :]
        with_word = self._encode(self._open + _WORD, self._at_start)[self._skip :]
        return tail if tail and with_word[:-1] == tail else None

    def _encode(self, text: str, at_start: bool) -> list[int]:
        plain = not at_start or not self._inside
        return self._backend.encode(text) if plain else self._backend.encode_inside(text)

    def _advance(self) -> None:
        """Moves the cut to the last safe boundary, keeping the text before it as context."""
        cut = self._boundaries.last(self._open, max(self._cut, self._scanned))
        self._scanned = len(self._open) - 1
        if cut is None:
            return
        settled = self._encode(self._open[:cut], self._at_start)[self._skip :]
        guard = self._boundaries.last(self._open, 0, cut, firm=True) or 0
        at_start = self._at_start and guard == 0
        skip = len(self._encode(self._open[guard:cut], at_start))
        rest = self._encode(self._open[guard:], at_start)[skip:]
        # By the rules above this always holds; a tokenizer of an unknown kind that breaks it keeps its long tail.
        if settled + rest != self._tail:
            return
        self._final += settled
        self._open, self._cut, self._skip = self._open[guard:], cut - guard, skip
        self._scanned -= guard
        self._tail, self._at_start = rest, at_start
