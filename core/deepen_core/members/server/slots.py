"""Which slot of a llama.cpp server holds which sequence."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import takewhile

from deepen_core.members.sequence import MemberSequence


class Seat:
    """A sequence's claim to a slot, see `SequenceCache`.

    Args:
        slots: Those of its server.
        number: The slot's number.
    """

    def __init__(self, slots: Slots, number: int) -> None:
        self._slots = slots
        self.number = number

    def free(self) -> None:
        """See `SequenceCache.free`. The server keeps what it has, for a text with the same beginning."""
        self._slots.leave(self)


class Slots:
    """The slots of a server, each of which holds keys and values of one text.

    A slot that is taken from a sequence is only slower for that: its next request is evaluated from the first id that
    differs.

    Args:
        count: Their number.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._held: list[list[int]] = [[] for _ in range(count)]
        self._seats: list[Seat | None] = [None] * count
        self._used = [0] * count
        self._now = 0
        self._lock = threading.Lock()  # a step that was left behind may free seats meanwhile

    def seat(self, sequence: MemberSequence) -> int:
        """Returns the number of a sequence's slot.

        That is the one it has, or the free one that holds most of its beginning, or that was used longest ago.
        """
        with self._lock:
            seat = sequence.cache
            if not (isinstance(seat, Seat) and self._seats[seat.number] is seat):
                seat = Seat(self, self._best(sequence.ids))
                self._seats[seat.number] = sequence.cache = seat
            self._now += 1
            self._used[seat.number] = self._now
            self._held[seat.number] = list(sequence.ids)
            return seat.number

    def leave(self, seat: Seat) -> None:
        """Frees the slot of a seat, if it still has it."""
        with self._lock:
            if self._seats[seat.number] is seat:
                self._seats[seat.number] = None

    def _best(self, ids: Sequence[int]) -> int:
        free = [number for number, seat in enumerate(self._seats) if seat is None]
        if not free:
            return min(range(self.count), key=self._used.__getitem__)
        return max(free, key=lambda number: (_common(self._held[number], ids), -self._used[number]))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the length of the common beginning of two texts."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
