"""A cache with a long past that was never run, to try masks where windows end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class MadeUpPast(Cache):
    """A cache that claims to hold a long past, and makes it up layer by layer when asked."""

    def __init__(self, pasts: Sequence[int], edges: Sequence[int]) -> None:
        super().__init__(layer_class_to_replicate=lambda: _MadeUpLayer(pasts, edges))  # type: ignore[arg-type]
        self._past = max(pasts)

    def get_seq_length(self, *_layer: Any, **_layers: Any) -> int:
        """Layers count from the start, though they are made later."""
        return self._past

    def get_mask_sizes(self, query_length: int, *_layer: Any, **_layers: Any) -> tuple[int, int]:
        """See `get_seq_length`."""
        return self._past + query_length, 0


class _MadeUpLayer(DynamicLayer):
    """Keys of zero, which are all alike, and values that differ wherever a mask may end."""

    def __init__(self, pasts: Sequence[int], edges: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pasts = pasts
        self._edges = edges

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the past followed by the new states [sequences, heads, 1, width]."""
        length = max(self._pasts) + 1
        keys, values = (
            states.new_zeros(states.shape[0], states.shape[1], length, states.shape[3])
            for states in (key_states, value_states)
        )
        width = torch.arange(values.shape[3], device=values.device)
        for sequence, past in enumerate(self._pasts):
            around = [
                past - edge + offset for edge in (*self._edges, *range(0, past, past // 8 + 1)) for offset in (-1, 0, 1)
            ]
            for place in {n for n in around if 0 <= n < past}:
                values[sequence, :, place] = (past * torch.cos(width + place)).to(values.dtype)
            keys[sequence, :, past], values[sequence, :, past] = (
                key_states[sequence, :, 0],
                value_states[sequence, :, 0],
            )
        return keys, values
