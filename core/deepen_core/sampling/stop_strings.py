"""Ending a text at a stop string, wherever token boundaries fall."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop string and holds back what may become one.

    Args:
        stops: Stop strings, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def feed(self, text: str) -> str:
        """Adds generated text and returns what may be shown now. After a match nothing more comes out."""
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
        """The text held back, when no more will come."""
        shown, self._held = self._held, ""
        return shown

    def _undecided(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(s.startswith(end) for s in self._stops):
                return length
        return 0
