"""Runs the ids of a tree of texts: each id attends to those that it follows, and to no other branch.

Shapes: ids and positions [1, nodes]; masks [1, 1, nodes, cached]; logits [wanted, vocabulary]. A node's place in the
cache is its number in the tree, and its position is that in its own text.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from deepen_core.members.base import Work
from deepen_core.members.text_tree import TextTree
from deepen_core.members.transformers.kv_cache import cache_option
from deepen_core.members.transformers.masks import Masks


class TreeForward:
    """Runs one tree, from its first node to its last.

    Args:
        model: The model.
        masks: The masks that it takes.
        vocabulary_size: Logits beyond it are not tokens; None for all of them.
        work: Counts what is run.
    """

    def __init__(self, model: Any, masks: Masks, vocabulary_size: int | None, work: Work) -> None:
        self._model = model
        self._masks = masks
        self._size = vocabulary_size
        self._work = work
        self._cache = DynamicCache()
        self._cache_option = cache_option(model)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._done = 0

    @torch.inference_mode()
    def run(self, tree: TextTree, stop: int, wanted: Sequence[int]) -> torch.Tensor:
        """See `TreeRun.run`."""
        start, device = self._done, self._model.device
        batch = torch.tensor([tree.ids[start:stop], tree.depths[start:stop]], device=device)  # [2, nodes]
        options: dict[str, Any] = {self._cache_option: self._cache, "use_cache": True}
        if not tree.is_chain(stop):
            visible = torch.from_numpy(tree.visible(start, stop)).to(device)
            keys = torch.tensor(tree.depths[:stop], device=device)
            options["attention_mask"] = self._masks.of_tree(visible, batch[1], keys)
        places = torch.tensor([node - start for node in wanted] or [0], device=device)
        if self._keeps:
            options["logits_to_keep"] = places
        logits: torch.Tensor = self._model(batch[:1], position_ids=batch[1:], **options).logits[0]
        self._done = stop
        self._work.forwards += 1
        self._work.ids_run += stop - start
        if not self._keeps:
            logits = logits[places]
        return logits[: len(wanted), : self._size].float()
