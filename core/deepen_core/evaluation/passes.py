"""Progress of passes over items: a bar in a terminal or notebook, and log lines anywhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

from tqdm.auto import tqdm

_LOG = logging.getLogger("deepen_core.evaluation")
_Item = TypeVar("_Item")


class Passes:
    """Reports how far passes over items are.

    A line is logged at level INFO when the first pass starts, and then at most one every `every_s` seconds, so that a
    long evaluation in the background tells where it is, and one of many short passes does not flood its log.

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
        # A handler may write to the same terminal: its line goes above the bar.
        on_terminal = self._shown and sys.stderr is not None and sys.stderr.isatty()
        with tqdm.external_write_mode(sys.stderr) if on_terminal else nullcontext():
            _LOG.info("%s: %d of %d items, %.0f s", what, done, count, now - started)
