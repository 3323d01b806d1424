"""Decodes bytes to text incrementally, without ever emitting part of a character."""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Joins the bytes of tokens to text, holding back the bytes of an incomplete character.

    Bytes that can never become valid turn into U+FFFD as soon as this is certain. The text as a whole equals
    `bytes.decode(errors="replace")`.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        """Adds bytes and returns the text that they complete."""
        return self._decoder.decode(data)

    @property
    def waiting(self) -> bool:
        """Whether bytes of an incomplete character are held back."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """Ends the text: an incomplete character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)
