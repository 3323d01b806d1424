"""Progress of a long piece of work: a progress bar in a terminal, and log lines anywhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType

from tqdm import tqdm
from typing_extensions import Self

from deepen_core.visible_text import visible

_LOG = logging.getLogger("deepen_core")
# No remaining time and no rate: the lengths of steps differ too much for either to be meaningful.
_TICK_S = 1.0
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


def on_terminal() -> bool:
    """Returns whether stderr is a terminal, which is where bars are shown."""
    return sys.stderr is not None and sys.stderr.isatty()


def above_bars(*, shown: bool) -> AbstractContextManager[None]:
    """Returns a context for log lines: a handler may write to the terminal that shows a bar, and writes above it.

    Args:
        shown: Whether a bar is shown there.
    """
    return tqdm.external_write_mode(sys.stderr) if shown else nullcontext()


class Steps:
    """Reports the steps of a piece of work; to be used as a context manager.

    A line is logged at level INFO when the work starts, and one with the seconds taken after each step and at the end.
    A step that raises is not logged, since the error reports it. In a terminal, the bar's clock keeps running during a
    long step, to show that it does not hang.

    Args:
        work: Name of the whole work, such as "Loading".
        of: What it is done to.
        count: Number of steps.
        shown: Whether to show a bar if stderr is a terminal; it disappears when the work is done.

    Attributes:
        shown: Whether a bar is shown.
    """

    def __init__(self, work: str, of: str, count: int, *, shown: bool) -> None:
        self._name = f"{work} {of}"
        self.shown = shown and on_terminal()
        self._bar = tqdm(total=count, desc=work, bar_format=_BAR, disable=not self.shown, leave=False)
        self._started = time.perf_counter()
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._say("%s", self._name)
        if self.shown:
            self._ticker = threading.Thread(target=self._tick, name="deepen-clock", daemon=True)
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._ticker is not None:
            self._ticker.join()
        self._bar.close()
        if kind is None:
            self._say("%s took %.1f s", self._name, time.perf_counter() - self._started)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Reports one step.

        Args:
            what: Name of the step, such as "alpha: loading weights".
        """
        self._bar.set_postfix_str(visible(what))
        started = time.perf_counter()
        yield
        self._bar.n += 1  # drawn with the next step: `update` would redraw it with this step's name
        self._say("%s took %.1f s", what, time.perf_counter() - started)

    def _tick(self) -> None:
        while not self._over.wait(_TICK_S):
            self._bar.refresh()

    def _say(self, message: str, *values: object) -> None:
        if not _LOG.isEnabledFor(logging.INFO):
            return
        with above_bars(shown=self.shown):
            _LOG.info(message, *values)
