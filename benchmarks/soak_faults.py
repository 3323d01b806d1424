"""What the soak does to an ensemble: hostile inputs, and a member that fails, hangs and recovers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

from benchmarks.soak_callers import Caller
from deepen_core import Ensemble
from deepen_core.errors import DeepenError
from deepen_core.members.base import Member
from deepen_core.members.sequence import MemberSequence

_EVERY_S = 10.0  # between two faults
_FAULT_S = 4.0


class FaultyMember:
    """A member that fails or hangs while it is told to.

    Args:
        member: The member.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self.failing = False
        self.hanging = threading.Event()
        self.hanging.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        self.hanging.wait()
        if self.failing:
            raise RuntimeError("a kernel broke")
        return self._member.next_logits(sequences)


class Faults:
    """Makes a member fail and hang in turn while the block runs.

    Args:
        member: The member.

    Attributes:
        spans: When it was at fault or in a step that took too long, each from when to when (`time.monotonic`).
    """

    def __init__(self, member: FaultyMember) -> None:
        self._member = member
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.spans: list[tuple[float, float]] = []
        self._overdue = _Overdue(self.spans)

    def __enter__(self) -> Self:
        logging.getLogger("deepen_core").addHandler(self._overdue)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        logging.getLogger("deepen_core").removeHandler(self._overdue)

    def _run(self) -> None:
        for hangs in itertools.cycle((False, True)):
            if self._over.wait(_EVERY_S):
                return
            place, began = len(self.spans), time.monotonic()
            self.spans.append((began, math.inf))  # the run may end before the fault
            if hangs:
                self._member.hanging.clear()
            else:
                self._member.failing = True
            self._over.wait(_FAULT_S)
            self._member.failing = False
            self._member.hanging.set()
            self.spans[place] = began, time.monotonic()


class _Overdue(logging.Handler):
    """Notes from when to when a member was in a step that took longer than `step_timeout`, as the engine logs it."""

    def __init__(self, spans: list[tuple[float, float]]) -> None:
        super().__init__(logging.WARNING)
        self._spans = spans

    def emit(self, record: logging.LogRecord) -> None:
        if "has ended a step" in record.msg and isinstance(record.args, tuple):
            now = time.monotonic()
            self._spans.append((now - float(str(record.args[1])), now))


def inputs() -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns what once stopped other callers: prompts and options, by their names."""
    deep: Any = {"type": "string"}
    for _ in range(1500):
        deep = {"type": "array", "items": deep}
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5000)}}
    wide["required"] = list(wide["properties"])
    some = {f"p{n}": {"type": "string"} for n in range(400)}
    return {
        "5 MB of text": ("word " * 1_000_000, {}),
        "60,000 choices": ("x", {"choices": [f"choice number {n}" for n in range(60_000)]}),
        "a schema of 5,000 properties": ("x", {"json_schema": wide}),
        "a schema of 400 properties": ("x", {"json_schema": {"type": "object", "properties": some}}),
        "a schema 1,500 levels deep": ("x", {"json_schema": deep}),
        "a chain of references": (
            "x",
            {
                "json_schema": {
                    "$ref": "#/$defs/d0",
                    "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1000)} | {"d1000": {}},
                }
            },
        ),
        "a grammar of 3,000 rules": (
            "x",
            {"grammar": "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(3000)) + 'r3000: "a"\n'},
        ),
        "half a character": ("a\ud800", {}),
        "100,000 stop strings": ("x", {"stop": [f"stop {n}" for n in range(100_000)]}),
        "as much text as fits": ("word " * 300, {}),
    }


class Hostile(Caller):
    """Sends each input once a second, on the event loop of other callers.

    Args:
        ensemble: The ensemble.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._inputs = inputs()
        super().__init__("hostile", self._once)
        self.is_async = True

    async def aask_on(self, going_on: Callable[[], bool]) -> None:
        """See `Caller.aask_on`; what comes of each input is nobody's concern but that of the others."""
        pending: set[asyncio.Task[None]] = set()
        while going_on():
            began = time.monotonic()
            for prompt, options in self._inputs.values():
                pending.add(asyncio.ensure_future(self._once(prompt, options)))
                await asyncio.sleep(max(0.0, 1.0 / len(self._inputs)))
            pending = {task for task in pending if not task.done()}
            await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))
        await asyncio.gather(*pending)

    def alone(self, going_on: Callable[[], bool]) -> None:
        """Sends them on an event loop of its own."""
        asyncio.run(self.aask_on(going_on))

    async def _once(self, prompt: Any, options: dict[str, Any] | None = None) -> None:
        try:
            await self._ensemble.agenerate(prompt, max_new_tokens=4, timeout=20, **(options or {}))
        except DeepenError:
            return
