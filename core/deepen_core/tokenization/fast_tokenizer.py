"""A private copy of a member's fast tokenizer, so that settings changed here affect no other user of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, wraps
from typing import Any, TypeVar

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Unigram
from typing_extensions import ParamSpec

from deepen_core.errors import TokenizerError, brief, is_panic

SPACE_MARK = "▁"  # how SentencePiece writes a space
_TOGETHER = 8192  # short texts in one encoding
_NONE = -1
P = ParamSpec("P")
T = TypeVar("T")
_LONG = 8192  # characters; encoding that many takes about ten milliseconds
_SEAMS = ("\n", "a", ".")  # few tokens join one of these with the text after it, and no token does so for all three
_BRACKETED = re.compile(r"[<\[].*[>\]]", re.DOTALL)


def _without_panics(use: Callable[P, T]) -> Callable[P, T]:
    """Raises a `TokenizerError` where the tokenizer's Rust code panics, which `except Exception` does not catch."""

    @wraps(use)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return use(*args, **kwargs)
        except BaseException as problem:
            if not is_panic(problem):
                raise
            raise TokenizerError(
                f"A tokenizer failed on a text ({brief(problem)}): fetch its files again, or leave its model out."
            ) from problem

    return guarded


def _types(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yields every component of a normalizer, pre-tokenizer or decoder description, sequences flattened."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for key in ("normalizers", "pretokenizers", "decoders", "processors"):
            for child in part.get(key, ()):
                yield from _types(child)
    else:
        yield part


class Backend:
    """A fast tokenizer without truncation, padding and post-processing; special tokens in a text are read as text.

    It shares the vocabulary and merges of the original, which take seconds to copy, and nothing that is changed here.

    Args:
        tokenizer: A `transformers` fast tokenizer, or a `tokenizers.Tokenizer`.
        control_tokens: Added tokens, besides the special ones, that text must never be encoded to.

    Raises:
        TokenizerError: If the tokenizer has no fast version.
    """

    @_without_panics
    def __init__(self, tokenizer: Any, control_tokens: frozenset[str] = frozenset()) -> None:
        source = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
        if source is None:
            raise TokenizerError(
                f"{type(tokenizer).__name__} has no fast version (tokenizer.json), which members need: give a model "
                "whose tokenizer has one."
            )
        self._source = source.model
        spec = _parts(source)
        self.added_tokens: list[dict[str, Any]] = [
            {**t, "special": t["special"] or t["content"] in control_tokens} for t in _added_tokens(source)
        ]
        self.normalizers = list(_types(spec["normalizer"]))
        self.pre_tokenizers = list(_types(spec["pre_tokenizer"]))
        self.decoders = list(_types(spec["decoder"]))
        self.model = _model_options(source)
        self._shut(spec, _stand_ins(tokenizer))
        self._first = self._build(spec)
        # With prepend_scheme "first", a segment after a special token gets no dummy space.
        prepends_first = [p for p in self.pre_tokenizers if p.get("prepend_scheme") == "first"]
        for part in prepends_first:
            part["prepend_scheme"] = "never"
        self._inside = self._build(spec) if prepends_first else self._first
        for part in prepends_first:
            part["prepend_scheme"] = "first"

    def _shut(self, spec: dict[str, Any], stand_ins: set[int]) -> None:
        """Keeps the tokenizer's model from reading control tokens, or byte tokens such as `<0x41>`, in text.

        `encode_special_tokens` only stops the matching of added tokens. A Unigram model still finds every piece of its
        vocabulary in a text, "</s>" and "<0x41>" included, where SentencePiece itself does not; other models find a
        piece that is a whole word. So the first character of each such piece is split off as a word of its own.
        """
        plain = self._build(spec)
        suspects = {t["content"]: t["id"] for t in self.added_tokens if t["special"]}
        suspects = {c: i for c, i in suspects.items() if i not in stand_ins or _BRACKETED.fullmatch(c)}
        if self.model.get("byte_fallback"):
            names = (f"<0x{byte:02X}>" for byte in range(256))
            suspects |= {name: i for name in names if (i := plain.token_to_id(name)) is not None}
        found = [c for c, i in suspects.items() if len(c) > 1 and i in plain.encode(c, add_special_tokens=False).ids]
        if not found:
            return
        starts = "|".join(f"{re.escape(c[0])}(?={re.escape(c[1:])})" for c in found)
        cut = {"type": "Split", "pattern": {"Regex": starts}, "behavior": "Isolated", "invert": False}
        usual = [spec["pre_tokenizer"]] if spec["pre_tokenizer"] else []
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*usual, cut]}

    def _build(self, spec: dict[str, Any]) -> Tokenizer:
        """Builds a tokenizer with these parts, which shares the vocabulary and merges of the original."""
        parts, built = Tokenizer.from_str(json.dumps(spec)), Tokenizer(self._source)
        for name in ("normalizer", "pre_tokenizer", "decoder"):
            if spec[name] is not None:
                setattr(built, name, getattr(parts, name))
        built.add_tokens([AddedToken(**{k: v for k, v in t.items() if k != "id"}) for t in self.added_tokens])
        built.encode_special_tokens = True
        return built

    @property
    def model_type(self) -> str:
        """BPE, Unigram, WordPiece or WordLevel."""
        return str(self.model["type"])

    @cached_property
    def pieces(self) -> dict[str, int]:
        """Token string to id, added tokens included; large, so call `forget_pieces` when it is no longer needed."""
        return self._first.get_vocab(with_added_tokens=True)

    def forget_pieces(self) -> None:
        """Frees `pieces`, which are read again when they are needed again."""
        self.__dict__.pop("pieces", None)

    def encode(self, text: str) -> list[int]:
        """Ids of a text that starts a document, without BOS or EOS."""
        return _ids(self._first, text)

    @_without_panics
    def token_ends(self, text: str) -> list[int]:
        """Where each token of a text that starts a document ends in it, in characters.

        Tokens of one character, which are parts of its bytes, all end after it.
        """
        return [end for _, end in self._first.encode(text, add_special_tokens=False).offsets]

    def encode_inside(self, text: str) -> list[int]:
        """Ids of a text that follows a special token."""
        return _ids(self._inside, text)

    def encode_behind(self, text: str) -> Iterator[list[int]]:
        """Yields the ids of a text that follows other text, once for each seam that keeps its own ids before it.

        These differ from `encode_inside`, where a normalizer may put a space before the text.
        """
        for seam in _SEAMS:
            before, whole = self.encode(seam), self.encode(seam + text)
            if whole[: len(before)] == before:
                yield whole[len(before) :]

    def first_behind(self, texts: Sequence[str], fits: Callable[[int, int], bool]) -> list[int | None]:
        """Returns the first id of each of many short texts that follow other text, as `encode_behind` reads them.

        Args:
            texts: The texts.
            fits: Whether the text of some number, its first argument, can begin with some id.

        Returns:
            The first id of the first reading that begins with a fitting one; None if there is no such reading.
        """
        found: list[int | None] = [None] * len(texts)
        for seam in _SEAMS:
            before = self.encode(seam)
            left = [number for number, first in enumerate(found) if first is None]
            begun = self._beginnings([seam + texts[number] for number in left], len(before) + 1)
            firsts = np.where((begun[:, :-1] == before).all(axis=-1), begun[:, -1], _NONE).tolist()
            for number, first in zip(left, firsts, strict=True):
                if first != _NONE and fits(number, first):
                    found[number] = first
        return found

    @_without_panics
    def _beginnings(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Returns the first ids of each of many short texts that start documents, int64 [texts, length]; -1 for none.

        They are given as the words of a few long texts, which takes less time: each word is encoded by itself.
        """
        found = np.full((len(texts), length), _NONE)
        parts = [texts[start : start + _TOGETHER] for start in range(0, len(texts), _TOGETHER)]
        encodings = self._first.encode_batch(parts, is_pretokenized=True, add_special_tokens=False)
        for number, (part, encoding) in enumerate(zip(parts, encodings, strict=True)):
            padding = [_NONE] * length
            ids, words = np.array(encoding.ids + padding), np.array(encoding.word_ids + padding)
            texts_here = np.arange(len(part))[:, None]
            places = np.searchsorted(words[:-length], texts_here) + np.arange(length)  # [texts, length]
            found[number * _TOGETHER :][: len(part)] = np.where(words[places] == texts_here, ids[places], _NONE)
        return found

    @_without_panics
    def cuts(self, text: str) -> list[int]:
        """Where the pre-tokenizer begins a new word in a text."""
        words = self._first.pre_tokenizer.pre_tokenize_str(text) if self._first.pre_tokenizer else []
        return [start for _, (start, _) in words]

    @_without_panics
    def normalized(self, text: str) -> str:
        """What the normalizer makes of a text."""
        return str(self._first.normalizer.normalize_str(text)) if self._first.normalizer else text

    def control_ids(self, tokenizer: Any) -> set[int]:
        """Ids of the special tokens of `tokenizer`, of which this is the copy.

        A padding or unknown token that ordinary text is encoded to ("!" used as the padding token) counts as text and
        is left out.
        """
        contents = {t["id"]: t["content"] for t in self.added_tokens}
        special = {t["id"] for t in self.added_tokens if t["special"]}
        special |= set(getattr(tokenizer, "all_special_ids", None) or ())
        for token_id in _stand_ins(tokenizer):
            content = contents.get(token_id) or self._first.id_to_token(token_id) or ""
            if not _BRACKETED.fullmatch(content) and token_id in self.encode_inside(content)[-1:]:
                special.discard(token_id)
        return special

    def spellings(self, token_ids: Iterable[int]) -> list[str]:
        """The token strings of some ids."""
        return [self._first.id_to_token(i) or f"<{i}>" for i in token_ids]


def _parts(source: Tokenizer) -> dict[str, Any]:
    """Returns the description of a tokenizer with an empty model: a vocabulary takes seconds to write and to read."""
    empty = Tokenizer(BPE())
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(source, name) is not None:
            setattr(empty, name, getattr(source, name))
    spec: dict[str, Any] = json.loads(empty.to_str())
    return spec


def _added_tokens(source: Tokenizer) -> list[dict[str, Any]]:
    """Returns the added tokens by id, as tokenizer.json describes them."""
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        {"id": token_id, **{name: getattr(token, name) for name in names}}
        for token_id, token in sorted(source.get_added_tokens_decoder().items())
    ]


def _model_options(source: Tokenizer) -> dict[str, Any]:
    """Returns the options of a tokenizer's model, as tokenizer.json describes them, without vocabulary and merges."""
    model = source.model
    options: dict[str, Any]
    if isinstance(model, Unigram):  # it does not tell its options otherwise
        options = json.loads(source.to_str())["model"]
        return {name: value for name, value in options.items() if name != "vocab"}
    names = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    options = {name: getattr(model, name) for name in names if hasattr(model, name)}
    return {"type": type(model).__name__, **options}


def _stand_ins(tokenizer: Any) -> set[int]:
    """Ids of the tokens that serve only as padding or unknown token."""
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "unk", "bos", "eos")}
    return {i for i in (ids["pad"], ids["unk"]) if i is not None and i not in (ids["bos"], ids["eos"])}


@_without_panics
def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    if len(text) < _LONG:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    # Only the batch call releases the GIL; otherwise a long prompt would block every event loop.
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)
