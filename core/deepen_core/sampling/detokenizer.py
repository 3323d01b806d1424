"""Bytes to text without ever showing half a character."""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Joins the bytes of tokens to text; bytes that are not yet a whole character wait.

    Bytes that can never become valid turn into U+FFFD at the moment this is certain, exactly as
    `bytes.decode(errors="replace")` of the whole would have it.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        """Adds bytes and returns the text that is now complete."""
        return self._decoder.decode(data)

    @property
    def waiting(self) -> bool:
        """Whether bytes of an unfinished character are held back."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """Ends the text: an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)
