"""Hostile inputs: values of any kind, and valid inputs with a few places changed."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

TEXTS = (
    "", " ", "a", "\0", "\ud800", "\udfff\ud800", "a" * 300, "é\u0301", "\u202e", "🙂", "\x1b[2J", "\r\n",
    "../../etc/passwd", "~", "~nobody/x", "/dev/null", "{{ 1 }}", "{% for", "<|im_start|>", "</s>", "<tool_call>",
    "</tool_call>", "[INST]", "null", "NaN", "1e999", "-1", "9" * 400, "(", "(a|a)*b", "[", "\\", "$ref", "#/",
    "#/$defs/x", "http://x", "auto", "cpu", "cuda:99", "float31", "user", "system", "assistant", "tool", "function",
    "text", "object", "integer", "type", "role", "content", "__class__", "%s%n", "{0.__class__}", "\ufdd0", "\ufdd1",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 100, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1,
    10**30, 0.0, -0.0, 0.5, 1e-320, 1e308, math.inf, -math.inf, math.nan, True, False,
)  # fmt: skip


class _Odd:
    """An object that nothing expects, and that fails when it is looked at."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __repr__(self) -> str:
        return "<odd>"


class Mutator:
    """Draws inputs; equal seeds give equal ones.

    Args:
        seed: Of its random numbers.
        json_only: Draw only what JSON has.
    """

    def __init__(self, seed: str, *, json_only: bool = False) -> None:
        self.draw = random.Random(seed)
        self._json_only = json_only

    def value(self, levels: int = 3) -> Any:
        """Returns any value."""
        draw, kind = self.draw, self.draw.random()
        if kind < 0.35 or (levels == 0 and kind < 0.7):
            return self.text()
        if kind < 0.6 or levels == 0:
            return draw.choice(NUMBERS)
        if kind < 0.68:
            return None
        if kind < 0.8:
            return [self.value(levels - 1) for _ in range(draw.choice((0, 1, 1, 2, 3)))]
        if kind < 0.93 or self._json_only:
            return {self._key(): self.value(levels - 1) for _ in range(draw.choice((0, 1, 1, 2, 3)))}
        odd: tuple[Callable[[], Any], ...] = (
            _Odd, lambda: b"\xff\0", lambda: (self.value(levels - 1),), lambda: {1, "a"}, lambda: object, lambda: len,
            lambda: float, lambda: range(3), lambda: iter([1]), lambda: 1j, lambda: bytearray(b"a"), lambda: _deep(300),
        )  # fmt: skip
        return draw.choice(odd)()

    def text(self) -> str:
        """Returns a text."""
        draw = self.draw
        return "".join(draw.choice(TEXTS) for _ in range(draw.choice((1, 1, 1, 2, 4))))

    def _key(self) -> Any:
        odd = not self._json_only and self.draw.random() < 0.05
        return self.draw.choice((1, None, 2.5, b"a", ("a",))) if odd else self.text()

    def changed(self, valid: Any, most: int = 3) -> Any:
        """Returns a copy of a valid input with at most a few places changed, and sometimes none."""
        found = copy.deepcopy(valid)
        for _ in range(self.draw.randint(0, most)):
            found = self._changed_once(found)
        return found

    def _changed_once(self, value: Any) -> Any:
        """Walks down to a random place and changes what is there."""
        draw = self.draw
        if isinstance(value, dict) and value and draw.random() < 0.75:
            key = draw.choice(list(value))
            changed = dict(value)
            if draw.random() < 0.1:
                changed[self._key()] = changed.pop(key)
            else:
                changed[key] = self._changed_once(changed[key])
            return changed
        if isinstance(value, list) and value and draw.random() < 0.75:
            place = draw.randrange(len(value))
            return [*value[:place], self._changed_once(value[place]), *value[place + 1 :]]
        return self._changed_here(value)

    def _changed_here(self, value: Any) -> Any:
        draw = self.draw
        if isinstance(value, str) and draw.random() < 0.5:
            place = draw.randint(0, len(value))
            return (
                value[:place] + draw.choice((self.text(), "", value[place:] * 2)) + value[place + draw.randint(0, 3) :]
            )
        if isinstance(value, dict) and draw.random() < 0.6:
            gone = draw.choice(list(value)) if value and draw.random() < 0.5 else None
            kept = {key: one for key, one in value.items() if key != gone}
            return kept if gone is not None else {**kept, self._key(): self.value()}
        if isinstance(value, list) and draw.random() < 0.6:
            return draw.choice((value[1:], value * 2, [*value, self.value()], [value], [*value[::-1]]))
        if isinstance(value, (int, float)) and draw.random() < 0.4:
            return draw.choice((-value, value + 1, str(value), [value], float(value) if abs(value) < 2**60 else 0))
        return draw.choice((self.value(), self.value(), None, [value], {"a": value}))

    def changed_bytes(self, data: bytes) -> bytes:
        """Returns a copy of a file's content with a few bytes changed, cut or repeated."""
        draw, found = self.draw, bytearray(data)
        for _ in range(draw.randint(0, 3)):
            place, length = draw.randint(0, len(found)), draw.choice((1, 1, 2, 8, 64))
            new = draw.choice(
                (b"", draw.randbytes(length), bytes(found[place : place + length]) * 2, b"\0" * length, b"{[")
            )
            found[place : place + draw.choice((0, length))] = new
        return bytes(found)


def _deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value
