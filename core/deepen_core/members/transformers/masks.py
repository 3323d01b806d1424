"""Attention masks for sequences of different lengths: which of the positions held each new id looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Reach:
    """How far back a layer looks.

    Attributes:
        window: At the last so many positions, the id's own among them.
        chunk: Only inside the id's own chunk of so many positions.
    """

    window: int | None = None
    chunk: int | None = None

    @property
    def limit(self) -> int | None:
        """Up to which length of text it hides nothing; None if it never does."""
        return self.window or self.chunk


class Masks:
    """Makes the masks that a model takes.

    Args:
        reach: Of all layers, or by the model's names of layer types.
        dtype: Of the model.
    """

    def __init__(self, reach: Reach | Mapping[str, Reach], dtype: torch.dtype) -> None:
        self._reach = reach
        self._lowest = torch.finfo(dtype).min
        self._dtype = dtype

    @property
    def limits(self) -> list[int]:
        """The lengths of text beyond which some layer does not look at all of it."""
        kinds = [self._reach] if isinstance(self._reach, Reach) else self._reach.values()
        return sorted({kind.limit for kind in kinds if kind.limit is not None})

    def make(self, places: torch.Tensor, length: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """The masks, in the shape that the model takes them.

        Args:
            places: Positions of the new ids, [sequences, ids].
            length: How many positions are held at most.

        Returns:
            Numbers to add to attention scores, [sequences, 1, ids, positions]; by layer type if the model wants that.
        """
        made: dict[Reach, torch.Tensor] = {}
        kinds = {"": self._reach} if isinstance(self._reach, Reach) else self._reach
        for kind in kinds.values():
            if kind not in made:
                made[kind] = self._make(kind, places, length)
        return made[self._reach] if isinstance(self._reach, Reach) else {n: made[k] for n, k in kinds.items()}

    def _make(self, reach: Reach, places: torch.Tensor, length: int) -> torch.Tensor:
        here = places[:, None, :, None]
        keys = torch.arange(length, device=places.device)
        hidden = keys > here  # [sequences, 1, ids, positions]
        if reach.window is not None and length > reach.window:
            hidden |= keys <= here - reach.window
        if reach.chunk is not None and length > reach.chunk:
            hidden |= keys < here - here % reach.chunk
        return torch.zeros(hidden.shape, dtype=self._dtype, device=places.device).masked_fill_(hidden, self._lowest)


def likely_masks(model: Any) -> list[Masks]:
    """What a model's configuration may mean for its masks, the likeliest first; only a trial shows the right one."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    by_type = {
        "full_attention": Reach(),
        "sliding_attention": Reach(window=window),
        "chunked_attention": Reach(chunk=chunk),
    }
    readings: list[Reach | dict[str, Reach]] = []
    types = set(getattr(config, "layer_types", None) or ())
    if types and types <= by_type.keys():
        readings.append({name: by_type[name] for name in sorted(types)})
        readings += [by_type[name] for name in sorted(types)]
    readings += [Reach(window=window), Reach(chunk=chunk), Reach()]
    return [Masks(r, model.dtype) for i, r in enumerate(readings) if r not in readings[:i]]
