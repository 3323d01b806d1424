"""One public way in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.fuzz_inputs import Mutator
from deepen_core.errors import DeepenError

Try = Callable[[Mutator], None]


@dataclass(frozen=True)
class Entry:
    """A way in."""

    name: str
    attempt: Try
    """Makes an input and gives it; raises what it raises."""
    allowed: tuple[type[Exception], ...] = (DeepenError,)
    """What it may raise: `DeepenError`, and what its documentation names."""
    share: float = 1.0
    """Of the inputs of a test, where one takes long."""
