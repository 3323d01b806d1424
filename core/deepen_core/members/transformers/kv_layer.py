"""The keys and values of one layer for sequences of different lengths; see `kv_cache`."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

LEAST_POSITIONS = 64
"""Buffers have room for at least this many positions, and grow by half of what is needed."""


class Plan:
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
        self.room = (1, LEAST_POSITIONS)


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer at every position; a sliding window is left to the mask."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, plan: Plan) -> None:
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
