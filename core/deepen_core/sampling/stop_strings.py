"""Ends a text at a stop string, wherever token boundaries fall."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through up to the first stop string, and holds back what may become one.

    Args:
        stops: Stop strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def feed(self, text: str) -> str:
        """Adds generated text and returns the text that can be emitted. After a match it returns nothing more."""
        if self.matched is not None:
            return ""
        self._held += text
        found = [(self._held.find(s), -len(s), s) for s in self._stops if s in self._held]
        if found:
            place, _, self.matched = min(found)
            shown, self._held = self._held[:place], ""
            return shown
        keep = self._undecided()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """Returns the text held back, once there is no more to come."""
        shown, self._held = self._held, ""
        return shown

    def _undecided(self) -> int:
        """Returns the length of the longest end of the held text that is the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(s.startswith(end) for s in self._stops):
                return length
        return 0
