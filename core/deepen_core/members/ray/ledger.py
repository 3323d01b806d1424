"""What an actor has been told of the sequences of its member."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np

from deepen_core.members.ray.messages import Update
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.text_tree import common_length


class ActorCache:
    """What the actor has of one sequence, as far as this process knows.

    Args:
        key: The sequence's number.
        released: Where the key goes when the sequence ends.
    """

    def __init__(self, key: int, released: deque[int]) -> None:
        self.key = key
        self.ids: list[int] = []
        self._released = released

    def free(self) -> None:
        """See `SequenceCache.free`; the actor is told with the next message."""
        self.ids = []
        self._released.append(self.key)


class Ledger:
    """Keeps for each sequence which ids the actor has."""

    def __init__(self) -> None:
        self._keys = itertools.count()
        self._released: deque[int] = deque()  # of ended sequences, filled from any thread

    def take_released(self) -> list[int]:
        """Returns the keys of sequences that have ended since the last call."""
        return [self._released.popleft() for _ in range(len(self._released))]

    def update(self, sequence: MemberSequence) -> Update:
        """Returns what the actor is to be told of a sequence, and takes it for told."""
        cache = sequence.cache
        if not isinstance(cache, ActorCache):
            cache = sequence.cache = ActorCache(next(self._keys), self._released)
            sequence.cached = 0
            weakref.finalize(sequence, cache.free).atexit = False
        ids, cached = sequence.ids, min(sequence.cached, len(cache.ids))
        known = cached + common_length(cache.ids[cached:], ids[cached:])
        cache.ids[known:] = ids[known:]
        return Update(
            key=cache.key,
            known=known,
            cached=cached,
            new=np.array(ids[known:], dtype=np.int32),
            settled=sequence.settled,
            places=min(sequence.kept_tail, sequence.pending),
            shares=sequence.shares,
            source=None if known or sequence.source is None else np.array(sequence.source, dtype=np.int32),
        )

    def mistrust(self, sequences: Sequence[MemberSequence]) -> None:
        """Has the ids of sequences sent and run again: it is not known what the actor has of them."""
        for sequence in sequences:
            if isinstance(sequence.cache, ActorCache):
                sequence.cache.ids = []
            sequence.cached = 0
