"""Python's garbage collector, paused while tokenizers are read."""

from __future__ import annotations

import gc

from deepen_core.process_setting import ProcessSetting


class _Paused(ProcessSetting):
    """Pauses the collector while any thread is inside.

    Reading tokenizer.json makes a million lists and strings that stay until it has been read. The collector goes
    through all of them again and again, which takes a third of the time, and finds nothing: no cycle holds them.
    """

    _was_enabled = False

    def _change(self) -> None:
        self._was_enabled = gc.isenabled()
        gc.disable()

    def _restore(self) -> None:
        if self._was_enabled:
            gc.enable()


collector_paused = _Paused()
"""A context; the collector is a setting of the process."""
