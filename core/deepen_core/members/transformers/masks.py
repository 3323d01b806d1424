"""Attention masks for sequences of different lengths: the cached positions that each new id attends to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Reach:
    """How far back a layer attends.

    Attributes:
        window: To the last `window` positions, the id's own included.
        chunk: Only within the id's own chunk of `chunk` positions.
    """

    window: int | None = None
    chunk: int | None = None

    @property
    def limit(self) -> int | None:
        """The text length up to which nothing is hidden; None if nothing ever is."""
        return self.window or self.chunk


class Masks:
    """Builds the masks in the form that a model takes.

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
        """The text lengths beyond which some layer does not attend to the whole text."""
        kinds = [self._reach] if isinstance(self._reach, Reach) else self._reach.values()
        return sorted({kind.limit for kind in kinds if kind.limit is not None})

    def make(self, places: torch.Tensor, length: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns the masks in the form that the model takes.

        Args:
            places: Positions of the new ids, [sequences, ids].
            length: Number of positions of the longest sequence.

        Returns:
            Numbers to add to attention scores, [sequences, 1, ids, positions]; by layer type if the model wants that.
        """
        here, keys = places[:, None, :, None], torch.arange(length, device=places.device)
        return self._by_kind(here, keys, keys > here)

    def of_tree(
        self, visible: torch.Tensor, here: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns the masks of ids that follow others in a tree, in the form that the model takes.

        Args:
            visible: Which cached ids each new id follows, itself included, bool [ids, cached].
            here: Positions of the new ids, [ids].
            keys: Positions of the cached ids, [cached].
        """
        return self._by_kind(here[None, None, :, None], keys, ~visible[None, None])

    def _by_kind(
        self, here: torch.Tensor, keys: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        made: dict[Reach, torch.Tensor] = {}
        kinds = {"": self._reach} if isinstance(self._reach, Reach) else self._reach
        for kind in kinds.values():
            if kind not in made:
                made[kind] = self._make(kind, here, keys, hidden)
        return made[self._reach] if isinstance(self._reach, Reach) else {n: made[k] for n, k in kinds.items()}

    def _make(self, reach: Reach, here: torch.Tensor, keys: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Returns one mask [sequences, 1, ids, positions]; `hidden` has the shape of it."""
        if reach.window is not None and len(keys) > reach.window:
            hidden = hidden | (keys <= here - reach.window)
        if reach.chunk is not None and len(keys) > reach.chunk:
            hidden = hidden | (keys < here - here % reach.chunk)
        return torch.zeros(hidden.shape, dtype=self._dtype, device=keys.device).masked_fill_(hidden, self._lowest)


def likely_masks(model: Any) -> list[Masks]:
    """Returns the masks that a configuration may stand for, the likeliest first; only a trial shows the right one."""
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
