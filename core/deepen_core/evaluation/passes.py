"""Progress of passes over items: a bar in a terminal or notebook, and log lines anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm.auto import tqdm

from deepen_core.progress import above_bars, on_terminal

_LOG = logging.getLogger("deepen_core.evaluation")
_Item = TypeVar("_Item")


class Passes:
    """Reports how far passes over items are.

    A line is logged at level INFO when the first pass starts, and then at most one every `every_s` seconds: enough to
    follow a long evaluation, and few for one of many short passes.

    Args:
        shown: Whether to show a bar for each pass, if stderr is a terminal, or in a notebook.
        every_s: Shortest time between two lines, in seconds.
    """

    def __init__(self, *, shown: bool, every_s: float = 30.0) -> None:
        self._shown = shown
        self._every_s = every_s
        self._told: float | None = None

    def over(self, items: Sequence[_Item], what: str) -> Iterator[_Item]:
        """Yields the items of one pass, each of which is done when the next one is asked for.

        Args:
            items: The items; without any, nothing is reported.
            what: What the pass does, in a few words.
        """
        if not items:
            return
        started = time.monotonic()
        self._tell(what, 0, len(items), started)
        with tqdm(items, desc=what, unit="item", disable=None if self._shown else True) as bar:
            for done, item in enumerate(bar, start=1):
                yield item
                self._tell(what, done, len(items), started)

    def _tell(self, what: str, done: int, count: int, started: float) -> None:
        now = time.monotonic()
        if self._told is not None and now - self._told < self._every_s:
            return
        self._told = now
        with above_bars(shown=self._shown and on_terminal()):
            _LOG.info("%s: %d of %d items, %.0f s", what, done, count, now - started)
