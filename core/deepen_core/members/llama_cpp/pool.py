"""The keys and values of many sequences in one context of llama.cpp, which grows with them.

Sequences share the places of a context, so a copied beginning takes none. A context has a fixed number of places and
sequences: if more are needed, all that it holds moves to a larger one. Only the limit is never exceeded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from deepen_core.members.llama_cpp.context import LlamaContext, Part
from deepen_core.members.llama_cpp.model import LlamaModel
from deepen_core.members.sequence import KEPT_TAIL

MOST_SEQUENCES = 256
"""As many as llama.cpp can tell apart."""
_SEQUENCES, _PLACES = 8, 512  # of a new context


class NoRoomError(Exception):
    """The context cannot grow any more; nothing has changed."""


class Slot:
    """The place of one sequence in a pool.

    Attributes:
        pool: The pool.
        number: llama.cpp's number of the sequence; -1 once it is freed.
        ids: The ids whose keys and values it holds, from the first position on.
    """

    def __init__(self, pool: Pool, number: int) -> None:
        self.pool = pool
        self.number = number
        self.ids: list[int] = []

    def free(self) -> None:
        """Frees the slot; may be called from any thread, and while the pool is in use."""
        self.pool.leave(self)


class Pool:
    """The slots of sequences; see the module docstring.

    It may only be used inside `busy`, by one thread at a time; `Slot.free` alone may be called at any time.

    Args:
        model: The model.
        most: Most places, for the ids of all sequences.
        exact: Keep keys and values in float32.
        single: Hold one sequence only, and nothing once that is freed.
    """

    def __init__(self, model: LlamaModel, most: int, *, exact: bool, single: bool = False) -> None:
        self._model = model
        self.most = most
        self._exact = exact
        self._single = single
        self._context: LlamaContext | None = None
        self.slots: list[Slot] = []
        self._leaving: deque[Slot] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Keeps every slot until the end; those that are freed meanwhile are removed afterwards."""
        try:
            with self._lock:
                self._settle()
                yield
        finally:
            self._settle_if_idle()

    def leave(self, slot: Slot) -> None:
        """See `Slot.free`."""
        self._leaving.append(slot)
        self._settle_if_idle()

    def forget(self) -> None:
        """Drops what all slots hold."""
        for slot in self.slots:
            self.cut(slot, 0)

    def make_room(self, ids: int, sequences: int) -> None:
        """Makes room for new ids and sequences, as far as the limit allows. Slots may hold less afterwards.

        Args:
            ids: Most ids that all sequences will have together.
            sequences: Number of new ones.

        Raises:
            MemoryError: If there is no memory for it.
        """
        context = self._context
        places = 0 if context is None else context.places
        numbers = 0 if context is None else context.sequences
        most_numbers = 1 if self._single else MOST_SEQUENCES
        ids, wanted = min(ids, self.most), min(len(self.slots) + sequences, most_numbers)
        if ids <= places and wanted <= numbers:
            return
        if ids > places:
            places = min(max(2 * places, ids, _PLACES), self.most)
        if wanted > numbers:
            numbers = min(max(2 * wanted, _SEQUENCES), most_numbers)
        self._grow(places, numbers)

    def take(self) -> Slot:
        """Returns a slot for a new sequence.

        Raises:
            NoRoomError: If llama.cpp cannot have one more.
        """
        free = set(range(self.context.sequences)) - {slot.number for slot in self.slots}
        if not free:
            raise NoRoomError
        slot = Slot(self, min(free))
        self.slots.append(slot)
        return slot

    def cut(self, slot: Slot, length: int) -> None:
        """Shortens what a slot holds."""
        if len(slot.ids) > length:
            self.context.cut(slot.number, length)
            del slot.ids[length:]

    def copy(self, source: Slot, target: Slot, length: int) -> None:
        """Lets an empty slot begin as another one does."""
        self.context.copy(source.number, target.number, length)
        target.ids = source.ids[:length]

    @property
    def context(self) -> LlamaContext:
        """The context; there is one once `make_room` has been called."""
        assert self._context is not None, "room was made"
        return self._context

    def run(self, work: Sequence[tuple[Slot, Sequence[int], int]]) -> torch.Tensor:
        """Runs new ids of some slots together.

        Args:
            work: Slots, each with its new ids, and at how many places at their end logits are wanted.

        Returns:
            See `LlamaContext.decode`.

        Raises:
            NoRoomError: If there is no room; the slots hold what they held before.
            RuntimeError: If llama.cpp fails; the slots hold nothing then.
        """
        parts = [Part(slot.number, len(slot.ids), ids, keep) for slot, ids, keep in work]
        try:
            logits = self.context.decode(parts)
        except RuntimeError:
            for slot, _, _ in work:
                self.context.cut(slot.number, 0)
                slot.ids.clear()
            raise
        if logits is None:
            raise NoRoomError
        for slot, ids, _ in work:
            slot.ids += ids
        return logits

    def _grow(self, places: int, sequences: int) -> None:
        old = self._context
        new = LlamaContext(self._model, places, sequences, KEPT_TAIL * sequences, exact=self._exact)
        fits = sum(len(slot.ids) for slot in self.slots) <= new.places  # copied beginnings are not shared any more
        for slot in self.slots:
            if fits and slot.ids and old is not None:
                old.move(slot.number, new)
            else:
                slot.ids.clear()
        self._context = new

    def _settle_if_idle(self) -> None:
        while self._leaving and self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Removes freed slots; without any, a context that has grown is dropped."""
        while self._leaving:
            slot = self._leaving.popleft()
            if slot.number < 0:  # freed twice
                continue
            self.cut(slot, 0)
            self.slots.remove(slot)
            slot.number = -1
        if not self.slots and self._context is not None and (self._single or self._context.places > _PLACES):
            self._context = None
