"""How much text a token can stand for, so that a text that cannot fit is refused before it is tokenised."""

from __future__ import annotations

from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.vocabulary import byte_table

_KEEPING = frozenset({"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation"})
"""Pre-tokenizers that drop nothing, unless their behaviour is "Removed"."""
_COMPOSED = 4  # canonical composition (NFC) joins at most this many characters to one


def characters_a_token(backend: Backend) -> int | None:
    """Returns the most characters of a text that one token can stand for; None if there is no such number.

    There is one for tokenizers that encode every byte. Others read any long word as one unknown token, or drop
    characters, and so do normalizers that strip or replace.
    """
    if backend.model_type != "BPE" or not _encodes_every_byte(backend):
        return None
    if any(p["type"] not in _KEEPING or p.get("behavior") == "Removed" for p in backend.pre_tokenizers):
        return None
    if any(token["lstrip"] or token["rstrip"] for token in backend.added_tokens):
        return None
    longest = max(map(len, backend.pieces))
    for part in backend.normalizers:
        if part["type"] == "NFC":
            longest *= _COMPOSED
        elif part["type"] == "Replace" and len(part["pattern"].get("String", "")) == 1 <= len(part["content"]):
            continue
        elif part["type"] != "Prepend":
            return None
    return longest


def _encodes_every_byte(backend: Backend) -> bool:
    if any(part["type"] == "ByteLevel" for part in backend.pre_tokenizers):
        return byte_table().keys() <= backend.pieces.keys()
    names = {f"<0x{byte:02X}>" for byte in range(256)}
    return bool(backend.model.get("byte_fallback")) and names <= backend.pieces.keys()
