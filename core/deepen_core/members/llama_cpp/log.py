"""What llama.cpp reports, as records of the logger `deepen_core` instead of lines on the terminal."""

from __future__ import annotations

import ctypes
import logging
from collections import deque

_LOG = logging.getLogger("deepen_core")
_WARN, _CONTINUED = 3, 5  # ggml's levels: debug 1, info 2, warn 3, error 4, the rest of the line before 5
_KEPT = 8

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
"""The type of a function that llama.cpp reports to."""


class LogLines:
    """Puts the pieces that llama.cpp reports together to lines, and keeps the last warnings and errors.

    Warnings and errors are logged at level INFO, since what matters of them is part of an exception.
    """

    def __init__(self) -> None:
        self.callback = FUNCTION(self._take)
        self._level = 0
        self._line = ""
        self._serious: deque[tuple[int, str]] = deque(maxlen=_KEPT)

    def forget(self) -> None:
        """Forgets the warnings and errors so far."""
        self._serious.clear()

    @property
    def told(self) -> str:
        """The last errors in one line, or the last warnings if there were none; empty without either."""
        worst = max((level for level, _ in self._serious), default=0)
        return "; ".join(line for level, line in self._serious if level == worst)

    def _take(self, level: int, piece: bytes, _: object) -> None:
        if level != _CONTINUED:
            self._level = level
        self._line += piece.decode(errors="replace")
        while "\n" in self._line:
            line, self._line = self._line.split("\n", 1)
            self._note(line.strip())

    def _note(self, line: str) -> None:
        if self._level >= _WARN and line:
            self._serious.append((self._level, line))
        _LOG.log(logging.INFO if self._level >= _WARN else logging.DEBUG, "llama.cpp: %s", line)
