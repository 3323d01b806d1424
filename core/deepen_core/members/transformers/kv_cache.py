"""A key/value cache for sequences of different lengths, which advance and are shortened independently.

Each layer keeps its keys and values in two buffers [slots, heads, positions, width]. Each sequence has a slot, one line
of these buffers. The slots in use are always the first ones, so that a range of slots can be attended to as a view, and
nothing is copied from step to step. When a sequence ends, the last slot moves into the gap.

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
from transformers.cache_utils import CacheLayerMixin

from deepen_core.members.transformers.given_tokens import ReadText

# Buffers have room for at least this many positions, and grow by half of what is needed.
_POSITIONS = 64


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
    """

    def __init__(self, cache: RaggedCache, index: int) -> None:
        self._cache = cache
        self.index = index
        self.ids: list[int] = []
        self.ahead: tuple[list[int], torch.Tensor] | None = None
        self.read: ReadText | None = None
        self.reach = 0  # no position from here on was ever written

    @property
    def held(self) -> bool:
        """Whether the cache still has it."""
        return self.index >= 0

    def free(self) -> None:
        """Frees the slot; may be called from any thread, and while the cache is in use."""
        self.ahead = self.read = None
        self._cache.leave(self)


class _Plan:
    """Where the next forward reads and writes, for all layers.

    Attributes:
        slots: Lines of the buffers that take part; indices if they are not adjacent.
        start: Position of the first new id if it is the same for all sequences, else None.
        places: If not, the indices (line, position) of the new ids, each [sequences, ids].
        past: Number of positions before the new ones of the longest sequence.
        length: Number of positions read.
        room: Lines and positions that the buffers must have.
    """

    def __init__(self) -> None:
        self.slots: slice | torch.Tensor = slice(0, 0)
        self.start: int | None = None
        self.places: tuple[torch.Tensor, torch.Tensor] | None = None
        self.past = 0
        self.length = 0
        self.room = (1, _POSITIONS)


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer at every position; a sliding window is left to the mask."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, plan: _Plan) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._plan = plan

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates the buffers for states of these shapes [sequences, heads, ids, width]."""
        lines, positions = self._plan.room
        self.keys, self.values = (
            states.new_zeros(lines, states.shape[1], positions, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values [sequences, heads, ids, width].

        Returns:
            All keys and values of these sequences, [sequences, heads, positions, width].
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.fit()
        plan = self._plan
        for held, new in zip(self._buffers(), (key_states, value_states), strict=True):
            if plan.start is not None:
                held[plan.slots, :, plan.start : plan.length] = new
            else:
                held.transpose(1, 2)[plan.places] = new.transpose(1, 2)  # [sequences, ids, heads, width]
        return self.seen()

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the keys and values that the plan reads, [sequences, heads, positions, width]."""
        self.fit()
        plan = self._plan
        keys, values = (held[plan.slots, :, : plan.length] for held in self._buffers())
        return keys, values

    def fit(self) -> None:
        """Resizes the buffers to the size in the plan, larger or smaller."""
        if not self.is_initialized or (self.keys.shape[0], self.keys.shape[2]) == self._plan.room:
            return
        self.keys, self.values = (self._resized(held) for held in self._buffers())

    def _resized(self, held: torch.Tensor) -> torch.Tensor:
        lines, positions = self._plan.room
        resized = held.new_zeros(lines, held.shape[1], positions, held.shape[3])
        part = held[:lines, :, :positions]
        resized[: part.shape[0], :, : part.shape[2]] = part
        return resized

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of one line to another."""
        self.fit()
        for held in self._buffers():
            held[target, :, :length] = held[source, :, :length]

    def clear(self, line: int, start: int, stop: int) -> None:
        """Sets some positions of a line to zero."""
        for held in self._buffers():
            held[line, :, start:stop] = 0

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor] | tuple[()]:
        return (self.keys, self.values) if self.is_initialized else ()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns the number of positions that a query looks at, and the first of them."""
        return self._plan.past + query_length, 0

    def get_seq_length(self) -> int:
        """Returns the number of positions before the new ones."""
        return self._plan.past

    def get_max_length(self) -> int:
        """Returns -1: there is no limit."""
        return -1


class RaggedCache(Cache):
    """The keys and values of many sequences; see the module docstring.

    It may only be used inside `busy`, by one thread at a time; `Slot.free` alone may be called at any time.
    """

    def __init__(self) -> None:
        self._plan = _Plan()
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
        """Returns a slot for a new sequence."""
        slot = Slot(self, len(self.slots))
        self.slots.append(slot)
        self._make_room()
        return slot

    def leave(self, slot: Slot) -> None:
        """See `Slot.free`."""
        self._leaving.append(slot)
        self._settle_if_idle()

    def copy(self, source: Slot, target: Slot, length: int) -> None:
        """Copies the first positions of one slot to another."""
        self._make_room(length)
        for layer in self._held:
            layer.copy(source.index, target.index, length)
        target.ids = source.ids[:length]
        target.reach = max(target.reach, length)

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

    def _shrink(self) -> None:
        """Shrinks buffers that are far too large for the remaining sequences."""
        lines, room = self._plan.room
        if not self.slots:
            self.layers.clear()
            self._held.clear()
            lines, room = 1, _POSITIONS
        elif lines >= 4 * len(self.slots):
            lines //= 2
        longest = max((slot.reach for slot in self.slots), default=0)
        if room >= 4 * max(longest, _POSITIONS):
            room = _generous(longest)
        self._plan.room = (lines, room)


def _generous(positions: int) -> int:
    """Returns room for `positions` and half as many again."""
    return -(-(positions + positions // 2) // _POSITIONS) * _POSITIONS
