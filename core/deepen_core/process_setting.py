"""A setting of the process that is changed while any thread is inside a block."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType


class ProcessSetting(ABC):
    """A context that changes a setting when the first thread enters, and restores it when the last one leaves."""

    def __init__(self) -> None:
        self._inside = 0
        self._changing = threading.Lock()

    def __enter__(self) -> None:
        with self._changing:
            self._inside += 1
            if self._inside == 1:
                self._change()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changing:
            self._inside -= 1
            if not self._inside:
                self._restore()

    @abstractmethod
    def _change(self) -> None: ...

    @abstractmethod
    def _restore(self) -> None: ...
