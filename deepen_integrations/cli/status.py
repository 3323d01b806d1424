"""A line on the terminal that says what is taking so long."""

from __future__ import annotations

import threading
from types import TracebackType

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from typing_extensions import Self

from deepen_core.progress import on_terminal
from deepen_integrations.cli.console import console

_PATIENCE_S = 1.0


class Status:
    """A line on the error stream, if that is a terminal, once something has taken a second; it disappears afterwards.

    Use it as a context manager; `stop` ends it before the context does, and further calls do nothing.

    Args:
        what: What is being done.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = on_terminal()
        self._lock = threading.Lock()
        self._over = False
        self._line: Progress | None = None
        self._timer = threading.Timer(_PATIENCE_S, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if self._shown:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Removes the line, or sees to it that it does not appear."""
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._line is not None:
                self._line.stop()
                self._line = None

    def _show(self) -> None:
        with self._lock:
            if self._over:
                return
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            self._line = Progress(
                *columns, console=console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._line.add_task(self._what, total=None)
            self._line.start()
