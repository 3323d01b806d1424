"""Ends a text at a stop string, wherever token boundaries fall."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class StopMatcher:
    """Passes text through up to the first stop string, and holds back what may become one.

    A step looks up the pieces of the text that is held, so its time hardly depends on the number of stop strings, only
    on their lengths.

    Args:
        stops: Stop strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = frozenset(stops)
        self._lengths = sorted({len(stop) for stop in self._stops}, reverse=True)
        self._sorted = sorted(self._stops)  # those with one beginning follow one another
        self._longest = max(self._lengths, default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def feed(self, text: str) -> str:
        """Adds generated text and returns the text that can be emitted. After a match it returns nothing more."""
        if self.matched is not None:
            return ""
        self._held += text
        if self._stops and (found := self._first()):
            place, self.matched = found
            shown, self._held = self._held[:place], ""
            return shown
        keep = self._undecided()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """Returns the text held back, once there is no more to come."""
        shown, self._held = self._held, ""
        return shown

    def _first(self) -> tuple[int, str] | None:
        """Returns where the first stop string begins in the held text, and the longest one that begins there."""
        for place in range(len(self._held)):
            for length in self._lengths:
                if (stop := self._held[place : place + length]) in self._stops:
                    return place, stop
        return None

    def _undecided(self) -> int:
        """Returns the length of the longest end of the held text that is the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            piece = self._held[-length:]
            after = bisect_right(self._sorted, piece)
            if after < len(self._sorted) and self._sorted[after][:length] == piece:
                return length
        return 0
