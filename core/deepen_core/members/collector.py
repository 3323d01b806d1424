"""Python's garbage collector, paused while tokenizers are read."""

from __future__ import annotations

import gc
import threading
from types import TracebackType


class _Paused:
    """Pauses the collector while any thread is inside.

    Reading tokenizer.json makes a million lists and strings that stay until it has been read. The collector goes
    through all of them again and again, which takes a third of the time, and finds nothing: no cycle holds them.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._was_enabled = False
        self._changing = threading.Lock()

    def __enter__(self) -> None:
        with self._changing:
            self._inside += 1
            if self._inside == 1:
                self._was_enabled = gc.isenabled()
                gc.disable()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changing:
            self._inside -= 1
            if not self._inside and self._was_enabled:
                gc.enable()


collector_paused = _Paused()
"""A context; the collector is a setting of the process."""
