"""How much one rendering of a chat template may make, and how long it may take.

Templates come from model folders, so they are not trusted with time or memory. What a template makes is weighed: one
for each character and each entry of a list or mapping, as often as it is found there. So a list that holds another one
twice weighs twice as much, since that is what it takes to write or compare it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

MAX_SECONDS = 2.0
"""Computing time of the thread; a conversation of a million characters takes a hundredth of that."""
MAX_MADE = 2**24
"""What any rendering may make, intermediate values included."""
MADE_PER_GIVEN = 64
"""How much more it may make for each character of the conversation."""
MAX_BITS = 1024
"""Of an integer."""
_MADE, _COMPARISONS = 4000, 16  # between two looks at the clock; what is compared may be long
_TEXTS = (str, bytes, bytearray)
_LISTS: tuple[type, ...] = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[Any, ...] = (*_TEXTS, *_LISTS, Mapping)


class LimitError(Exception):
    """A template would go beyond a limit; the message is the end of a sentence about it."""


class Work:
    """Counts what one rendering makes and does. Its methods raise `LimitError` where that is too much.

    Args:
        given: The weight of the conversation.
    """

    def __init__(self, given: int = 0) -> None:
        self._most = self._left = MAX_MADE + MADE_PER_GIVEN * given
        self._look = self._left  # at the clock, as soon as less than this is left
        self._comparisons = 0
        self._end = time.thread_time() + MAX_SECONDS

    def made(self, value: Any) -> Any:
        """Counts a value that was made, and returns it."""
        self._left -= 1 + (len(value) if value.__class__ is str else self.weight(value))
        if self._left < self._look:
            self._look_at_clock()
        return value

    def compared(self, outcome: Any) -> Any:
        """Counts a comparison, and returns its outcome."""
        self._comparisons += 1
        if self._comparisons % _COMPARISONS == 0:
            self._look_at_clock()
        return outcome

    def written(self, length: int) -> None:
        """Counts characters that the template writes itself, and a turn of a loop."""
        self._left -= 1 + length
        if self._left < self._look:
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        self.check_room(0)
        self._look = self._left - _MADE
        if time.thread_time() > self._end:
            raise LimitError(f"was not done after {MAX_SECONDS:g} seconds of computing")

    def check_room(self, size: int) -> None:
        """Rejects an operation that could make this much."""
        if size > self._left:
            raise LimitError(f"makes more than {self._most:,} characters and entries")

    def weight(self, value: Any) -> int:
        """Returns the weight of a value, which is not larger than what may still be made."""
        if isinstance(value, int):
            check_bits(value.bit_length())
        if not isinstance(value, _CONTAINERS):
            return 1
        found, under_way = 0, [_entries((value,))]
        while under_way:
            for one in under_way[-1]:
                if isinstance(one, _CONTAINERS):
                    found += 1 + len(one)
                    self.check_room(found)
                    if not isinstance(one, _TEXTS):
                        under_way.append(_entries(one))
                        break
            else:
                under_way.pop()
        return found


def check_bits(bits: int) -> None:
    """Rejects an integer of so many bits."""
    if bits > MAX_BITS:
        raise LimitError(f"computes with integers of more than {MAX_BITS:,} bits")


def _entries(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    else:
        yield from value
