"""The bytes that each token id of a tokenizer stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any, cast

import numpy as np

from deepen_core.errors import TokenizerError
from deepen_core.tokenization.fast_tokenizer import SPACE_MARK, Backend

MAX_IDS = 2**22
"""Token ids that are read: each takes memory. The largest vocabularies have a tenth of that."""

# Tokens that end a turn in common chat formats. See `_stops` for when they count.
TURN_ENDS = frozenset(
    "</s> <|endoftext|> <|end_of_text|> <|eot_id|> <|eom_id|> <|im_end|> <|end|> <|eot|> <|return|> <|call|> "
    "<end_of_turn> <turn|> <eos> <|end_of_turn|> <|endofturn|> <|END_OF_TURN_TOKEN|> <|eos|> "
    "<｜end▁of▁sentence｜> <|end▁of▁sentence|> <|user_end|> <|assistant_end|>".split()
)


def byte_table() -> dict[str, int]:
    """The inverse of GPT-2's `bytes_to_unicode`: the byte for each character that byte-level BPE writes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = byte_table()


class Vocabulary:
    """Bytes of every token id, and which ids are special or end a text.

    Build it with `Vocabulary.from_tokenizer`.

    Attributes:
        kind: "byte-level", "sentencepiece", "wordpiece" or "plain".
        size: One more than the largest id.
        special_ids: Ids of control tokens; they have no bytes and are never anchors.
        stop_ids: Ids that end a text or a turn, fused as one class; a subset of `special_ids`.
        bos_id: The id that starts a text, if there is one.
        starts_with_space: Whether encoding puts a space before the first word of a text.
    """

    def __init__(
        self,
        token_bytes: list[bytes | None],
        *,
        kind: str,
        special_ids: Iterable[int],
        stop_ids: Iterable[int],
        bos_id: int | None,
        canonical: dict[bytes, int],
        starts_with_space: bool,
    ) -> None:
        self._bytes = token_bytes
        self.kind = kind
        self.size = len(token_bytes)
        self.special_ids = frozenset(special_ids)
        self.stop_ids = frozenset(stop_ids)
        self.bos_id = bos_id
        self._canonical = canonical
        self.starts_with_space = starts_with_space

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes a token stands for, or None for a special token and for an id without a token."""
        return self._bytes[token_id] if 0 <= token_id < self.size else None

    def without_token(self, size: int) -> list[int]:
        """Returns the ids below `size` that stand for no token: those that pad a model's embeddings, and gaps."""
        return [i for i in range(size) if self.token_bytes(i) is None and i not in self.special_ids]

    def id_of(self, value: bytes) -> int | None:
        """The id that the tokenizer itself uses for these bytes as one token."""
        return self._canonical.get(value)

    @property
    def tokens(self) -> dict[bytes, int]:
        """Every byte string that is one token, with its canonical id."""
        return self._canonical

    def longest_beginning(self, value: bytes) -> int | None:
        """The id of the longest token that `value` begins with, or None if it begins with no token."""
        lengths = range(len(value), 0, -1)
        return next((self._canonical[value[:n]] for n in lengths if value[:n] in self._canonical), None)

    def join(self, token_ids: Iterable[int], *, at_start: bool = False) -> bytes:
        """The bytes of a token sequence; special tokens add nothing.

        Args:
            token_ids: Ids in order.
            at_start: Whether they start a text, so that a leading dummy space is dropped.
        """
        data = b"".join(self._bytes[i] or b"" for i in token_ids if 0 <= i < self.size)
        return data.removeprefix(b" ") if at_start and self.starts_with_space else data

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, stop_ids: Iterable[int] = (), backend: Backend | None = None) -> Vocabulary:
        """Reads the bytes of every token from a fast tokenizer.

        Args:
            tokenizer: A `transformers` fast tokenizer, or a `tokenizers.Tokenizer`.
            stop_ids: Ids that end a text according to the generation config; ordinary pieces among them are ignored.
                If they include any id other than the tokenizer's EOS, these and the EOS are the only stop ids.
                Otherwise the special tokens named in `TURN_ENDS` also count, except `<|end|>` where `<|return|>`
                exists: there it ends a message but not the turn (the harmony format).
            backend: The tokenizer's private copy, if it exists already.

        Raises:
            TokenizerError: If the tokenizer is of a kind whose tokens cannot be read as bytes, or has an id of
                `MAX_IDS` or more.
        """
        backend = backend or Backend(tokenizer)
        kind = _kind(backend)
        pieces = backend.pieces
        size = _size(pieces)
        added = {t["id"]: t for t in backend.added_tokens}
        special = backend.control_ids(tokenizer) | _unknown_ids(backend, pieces)
        falls_back = bool(backend.model.get("byte_fallback")) or any(
            d["type"] == "ByteFallback" for d in backend.decoders
        )

        values: list[bytes | None] = [None] * size
        rank: dict[int, int] = {}  # for equal bytes, a plain piece is preferred to an added token and a byte piece
        spell = _speller(kind, backend)
        for token_id, value in zip(pieces.values(), _all_spelled(list(pieces), kind, spell), strict=True):
            values[token_id] = value
        for (token_id, token), spelling in zip(added.items(), backend.spellings(added), strict=True):
            # Matched in the text as it stands; decoders of the other kinds treat added tokens like any piece, and spell
            # them as normalized.
            values[token_id] = token["content"].encode() if kind == "byte-level" else spell(spelling)
            rank[token_id] = 1
        if falls_back and kind == "sentencepiece":
            for byte, name in ((b, form % b) for b in range(256) for form in ("<0x%02X>", "<0x%02x>")):
                if (found := pieces.get(name)) is not None:
                    values[found], rank[found] = bytes([byte]), 2
        for token_id in special:
            if 0 <= token_id < size:
                values[token_id] = None
        names = {str(t["content"]): i for i, t in added.items() if i in special}
        # A configuration may name an id that is an ordinary piece of this tokenizer, such as a default of its class.
        given = {i for i in stop_ids if i in added or i in special or not 0 <= i < size or values[i] is None}
        stops = _stops(given, getattr(tokenizer, "eos_token_id", None), names)
        for token_id in stops:
            if 0 <= token_id < size:
                values[token_id] = None
        bos = getattr(tokenizer, "bos_token_id", None)
        # If a single letter is not a token of this vocabulary, this is only a second-best guess.
        first = backend.encode("a")
        starts_with_space = bool(first) and (values[first[0]] or b"").startswith(b" ")
        return cls(
            values,
            kind=kind,
            special_ids=special | stops,
            stop_ids=stops,
            bos_id=bos if isinstance(bos, int) else None,
            canonical=_canonical_ids(values, rank, backend),
            starts_with_space=starts_with_space,
        )


def _size(pieces: Mapping[str, int]) -> int:
    """Returns one more than the largest id; every id below it takes memory."""
    size = max(pieces.values(), default=-1) + 1
    if size > MAX_IDS:
        named = next(piece for piece, token_id in pieces.items() if token_id == size - 1)
        raise TokenizerError(
            f"This tokenizer has the id {size - 1:,} (of {named[:40]!r}), and at most {MAX_IDS:,} ids are read: fetch "
            "its files again."
        )
    return size


def _stops(given: set[int], eos: Any, names: dict[str, int]) -> set[int]:
    """Ids that end a text, from the given ones, the EOS and the special tokens by name."""
    ends = {eos} if isinstance(eos, int) else set()
    if given - ends:
        return given | ends
    known = TURN_ENDS - {"<|end|>"} if "<|return|>" in names else TURN_ENDS
    return ends | {token_id for name, token_id in names.items() if name in known}


def _kind(backend: Backend) -> str:
    """How token strings spell bytes."""
    model = backend.model
    if model.get("end_of_word_suffix"):
        raise TokenizerError(
            f"This tokenizer marks the end of words ({model['end_of_word_suffix']!r}), which is not supported: use a "
            "model with byte-level BPE, SentencePiece or WordPiece tokens."
        )
    parts = backend.pre_tokenizers + backend.decoders
    if any(p["type"] == "ByteLevel" for p in parts + backend.normalizers):
        return "byte-level"
    if model["type"] == "WordPiece":
        return "wordpiece"
    marks = any(p["type"] == "Metaspace" for p in parts)
    replaces = any(
        n["type"] == "Replace" and SPACE_MARK in (n.get("content"), *n.get("pattern", {}).values())
        for n in backend.normalizers + backend.decoders
    )
    return "sentencepiece" if marks or replaces else "plain"


def _unknown_ids(backend: Backend, pieces: dict[str, int]) -> set[int]:
    """The ids for text that has no token; they stand for no particular text."""
    model = backend.model
    if model.get("unk_id") is not None:
        return {int(model["unk_id"])}
    unknown = pieces.get(model.get("unk_token") or "")
    return set() if unknown is None else {unknown}


def _speller(kind: str, backend: Backend) -> Callable[[str], bytes]:
    """Returns the function from a token string to its bytes."""
    if kind == "byte-level":
        table = str.maketrans({char: chr(byte) for char, byte in _BYTE_OF.items()})

        def spell(piece: str) -> bytes:
            # Some vocabularies hold a few raw strings beside the byte-coded ones; they are text.
            coded = _BYTE_OF.keys() >= set(piece)
            return piece.translate(table).encode("latin-1") if coded else piece.encode()

        return spell
    if kind == "sentencepiece":
        return lambda piece: piece.replace(SPACE_MARK, " ").encode()
    if kind == "wordpiece":
        prefix = backend.model.get("continuing_subword_prefix") or "##"
        return lambda piece: (piece.removeprefix(prefix) if piece.startswith(prefix) else " " + piece).encode()
    return str.encode


def _all_spelled(pieces: list[str], kind: str, spell: Callable[[str], bytes]) -> Iterable[bytes]:
    """Returns the bytes of all pieces; in a byte-level vocabulary of nothing but coded ones, a character is a byte."""
    text = "".join(pieces)
    if kind == "sentencepiece" and "\0" not in text:  # characters are spelled one by one
        return spell("\0".join(pieces)).split(b"\0") if pieces else []
    if kind != "byte-level" or not _BYTE_OF.keys() >= set(text):
        return map(spell, pieces)
    data, ends = spell(text), list(accumulate(map(len, pieces)))
    return (data[start:end] for start, end in zip([0, *ends], ends, strict=False))


def _canonical_ids(values: list[bytes | None], rank: Mapping[int, int], backend: Backend) -> dict[bytes, int]:
    """Maps each byte string to the id that the tokenizer emits, else to the plainest of the ids that have it."""
    canonical: dict[bytes | None, int] = dict(zip(values, range(len(values)), strict=True))  # the last of equal ones
    chosen = list(map(canonical.__getitem__, values))
    twins: dict[bytes | None, list[int]] = {}
    for token_id in np.flatnonzero(np.array(chosen) != np.arange(len(values))).tolist():
        twins.setdefault(values[token_id], [chosen[token_id]]).append(token_id)
    for none in (None, b""):
        canonical.pop(none, None)
        twins.pop(none, None)
    known = cast("dict[bytes, int]", canonical)
    for value, ids in cast("dict[bytes, list[int]]", twins).items():
        emitted = _emitted(value, backend)
        known[value] = emitted if emitted in ids else min(ids, key=lambda i: (rank.get(i, 0), i))
    return known


def _emitted(value: bytes, backend: Backend) -> int | None:
    """The last id of the encoding of these bytes, if they are valid text and become a single token."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    alone, after = backend.encode_inside("\n"), backend.encode_inside("\n" + text)
    return after[-1] if after[: len(alone)] == alone and len(after) == len(alone) + 1 else None
