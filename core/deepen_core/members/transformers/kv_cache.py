"""A key/value cache for sequences of different lengths, which advance and are shortened independently.

Each layer keeps its keys and values in two buffers [slots, heads, positions, width]. Each sequence has a slot, one line
of these buffers. The slots in use are always the first ones, so that a range of slots can be attended to as a view, and
nothing is copied from step to step. When a sequence ends, the last slot moves into the gap. The last one of all may
stay, for the next sequence: a conversation that goes on is then not read again from its start.

Positions after the end of a sequence hold zeros, or what the sequence itself held there before it was shortened: finite
numbers that a mask cancels. They never hold what another sequence left, which may be NaN and which no mask cancels.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache

from deepen_core.members.sequence import WORTH_SHARING
from deepen_core.members.transformers.given_tokens import ReadText
from deepen_core.members.transformers.kv_layer import LEAST_POSITIONS, Plan, RaggedLayer


def cache_option(model: Any) -> str:
    """Returns the name of the model's cache argument.

    `transformers` calls it `past_key_values`, and `cache` from 5.24 on; Mamba has `cache_params`, and RWKV `state`.
    """
    accepts = inspect.signature(model.forward).parameters
    names = ("past_key_values", "cache", "cache_params", "state")
    return next((name for name in names if name in accepts), "past_key_values")


class Slot:
    """The place of one sequence in a `RaggedCache`.

    Attributes:
        index: Its line in the buffers; may change between forwards.
        ids: The ids whose keys and values it holds, from the first position on.
        ahead: Of a prompt that was read ahead, its ids and the logits after the last of them; until its next step.
        read: Of such a prompt, what was found.
        retired: Whether its sequence has ended regularly: it may stay for the next one.
        ended: Whether it has stayed.
    """

    def __init__(self, cache: RaggedCache, index: int) -> None:
        self._cache = cache
        self.index = index
        self.ids: list[int] = []
        self.ahead: tuple[list[int], torch.Tensor] | None = None
        self.read: ReadText | None = None
        self.retired = self.ended = False
        self.reach = 0  # no position from here on was ever written

    @property
    def held(self) -> bool:
        """Whether the cache still has it."""
        return self.index >= 0

    def free(self) -> None:
        """Frees the slot; may be called from any thread, and while the cache is in use."""
        self.ahead = None
        self._cache.leave(self)

    def retire(self) -> None:
        """See `Retires.retire`; may be called like `free`."""
        self.retired = True
        self.free()


class RaggedCache(Cache):
    """The keys and values of many sequences; see the module docstring.

    It may only be used inside `busy`, by one thread at a time; `Slot.free` and `Slot.retire` may be called at any time.

    Args:
        keeps_last: Whether the last slot may stay for the next sequence, which `take` then returns as it is.
    """

    def __init__(self, *, keeps_last: bool = False) -> None:
        self._keeps_last = keeps_last
        self._plan = Plan()
        self._held: list[RaggedLayer] = []
        super().__init__(layer_class_to_replicate=self._new_layer)  # type: ignore[arg-type]
        self.slots: list[Slot] = []
        self._leaving: deque[Slot] = deque()
        self._lock = threading.Lock()

    def _new_layer(self) -> RaggedLayer:
        self._held.append(RaggedLayer(self._plan))
        return self._held[-1]

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Keeps every slot at its line until the end; slots that are freed meanwhile are removed afterwards."""
        try:
            with self._lock:
                self._settle()
                yield
        finally:
            self._settle_if_idle()

    def forget(self) -> None:
        """Drops all slots, whatever an interrupted forward has left of them; their sequences have to start anew."""
        for slot in (*self.slots, *self._leaving):
            slot.index = -1
        self.slots.clear()
        self._leaving.clear()
        self._shrink()

    def between(self, slots: Iterable[Slot]) -> list[Slot]:
        """Returns all slots from the first to the last of the given ones."""
        lines = [slot.index for slot in slots]
        return self.slots[min(lines) : max(lines) + 1]

    def take(self) -> Slot:
        """Returns a slot for a new sequence: an empty one, or one that still holds the text of the last sequence.

        Nothing of that may stay but a beginning that is shared, see `copy`.
        """
        if self.slots and (last := self.slots[0]).ended:
            slot = Slot(self, 0)
            slot.ids, slot.read, slot.reach = last.ids, last.read, last.reach
            self.slots[0], last.index = slot, -1
            return slot
        slot = Slot(self, len(self.slots))
        self.slots.append(slot)
        self._make_room()
        return slot

    def leave(self, slot: Slot) -> None:
        """See `Slot.free`."""
        self._leaving.append(slot)
        self._settle_if_idle()

    def copy(self, source: Slot, target: Slot, length: int) -> None:
        """Copies the first positions of one slot to another, or keeps those of a slot itself, and clears all others."""
        self._make_room(length)
        for layer in self._held:
            layer.fit()
            if source is not target:
                layer.copy(source.index, target.index, length)
            layer.clear(target.index, length, target.reach)
        target.ids = source.ids[:length]
        target.reach = length

    def aim(self, slots: Sequence[Slot], starts: Sequence[int], places: torch.Tensor) -> None:
        """Sets where the next forward writes.

        Args:
            slots: Adjacent slots, in order.
            starts: Position of the first new id of each.
            places: Positions of the new ids, [sequences, ids].
        """
        count = places.shape[1]
        self._aim(slots, max(starts), count)
        if min(starts) != max(starts):
            lines = torch.tensor([slot.index for slot in slots], device=places.device)
            self._plan.start, self._plan.places = None, (lines[:, None], places)
        for slot, start in zip(slots, starts, strict=True):
            slot.reach = max(slot.reach, start + count)

    def aim_at(self, slots: Sequence[Slot], start: int, count: int) -> None:
        """Sets where the next forward writes, or what `seen` reads: the same positions in every slot.

        Args:
            slots: Any slots. Those that are not adjacent and in order are read as a copy.
            start: Position of the first new id.
            count: Number of new ids.
        """
        self._aim(slots, start, count)
        for slot in slots:
            slot.reach = max(slot.reach, start + count)

    def _aim(self, slots: Sequence[Slot], start: int, count: int) -> None:
        plan, lines = self._plan, [slot.index for slot in slots]
        plan.start, plan.places = start, None
        plan.past, plan.length = start, start + count
        adjacent = lines == [*range(lines[0], lines[0] + len(lines))]
        plan.slots = slice(lines[0], lines[-1] + 1) if adjacent else torch.tensor(lines)
        self._make_room(plan.length)

    def seen(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns the keys and values of each layer up to the end of the positions aimed at."""
        return [layer.seen() for layer in self._held]

    def _make_room(self, positions: int = 0) -> None:
        """Plans buffers that hold all slots and `positions`; each layer is resized when it is next used."""
        lines, room = self._plan.room
        if len(self.slots) > lines:
            lines = max(len(self.slots), 2 * lines)
        if positions > room:
            room = _generous(positions)
        self._plan.room = (lines, room)

    def _settle_if_idle(self) -> None:
        while self._leaving and self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    @torch.inference_mode()
    def _settle(self) -> None:
        """Removes freed slots and closes the gaps."""
        while self._leaving:
            slot = self._leaving.popleft()
            if slot.index < 0:  # freed twice
                continue
            if self._keeps_last and slot.retired and len(self.slots) == 1 and len(slot.ids) >= WORTH_SHARING:
                self._keep(slot)
                continue
            last = self.slots.pop()
            for layer in self._held if self.slots else ():
                layer.fit()
                if last is not slot:
                    layer.copy(last.index, slot.index, last.reach)
                    layer.clear(slot.index, last.reach, slot.reach)
                layer.clear(last.index, 0, last.reach)
            if last is not slot:
                self.slots[slot.index], last.index = last, slot.index
            slot.index = -1
            self._shrink()

    def _keep(self, slot: Slot) -> None:
        """Keeps the only slot for the next sequence, in buffers of its size."""
        slot.ended = True
        self._plan.room = (1, self._plan.room[1])
        self._shrink()
        for layer in self._held:
            layer.fit()

    def _shrink(self) -> None:
        """Shrinks buffers that are far too large for the remaining sequences."""
        lines, room = self._plan.room
        if not self.slots:
            self.layers.clear()
            self._held.clear()
            lines, room = 1, LEAST_POSITIONS
        elif lines >= 4 * len(self.slots):
            lines //= 2
        longest = max((slot.reach for slot in self.slots), default=0)
        if room >= 4 * max(longest, LEAST_POSITIONS):
            room = _generous(longest)
        self._plan.room = (lines, room)


def _generous(positions: int) -> int:
    """Returns room for `positions` and half as many again."""
    return -(-(positions + positions // 2) // LEAST_POSITIONS) * LEAST_POSITIONS
