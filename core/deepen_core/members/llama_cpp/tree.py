"""Runs the ids of a tree of texts by llama.cpp: branch after branch, in one sequence that goes back where they part."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from deepen_core.members.text_tree import ROOT, TextTree, common_length

if TYPE_CHECKING:
    from deepen_core.members.llama_cpp.runner import LlamaRunner


class LlamaTree:
    """Runs one tree, see `TreeRun`.

    Args:
        runner: Keeps the keys and values of its sequence, which is freed with this object.
        longest: Number of ids of the longest text.
    """

    def __init__(self, runner: LlamaRunner, longest: int) -> None:
        self._runner = runner
        self._slot = runner.reserve(longest)
        weakref.finalize(self, self._slot.free).atexit = False
        self._done = 0

    def run(self, tree: TextTree, stop: int, wanted: Sequence[int]) -> torch.Tensor:
        """See `TreeRun.run`."""
        found: dict[int, torch.Tensor] = {}
        for nodes in _branches(tree, self._done, stop):
            path = _path(tree, nodes[-1])
            start = tree.depths[nodes[0]]
            asked = {tree.depths[node]: node for node in wanted if nodes[0] <= node <= nodes[-1]}
            same = min(start, common_length(self._slot.ids, path))
            for place, logits in self._runner.run_on(self._slot, path, same, min(asked, default=len(path))):
                if place in asked:
                    found[asked[place]] = logits
        self._done = stop
        return torch.stack([found[node] for node in wanted]) if wanted else self._runner.no_logits()


def _branches(tree: TextTree, start: int, stop: int) -> Iterator[range]:
    """Yields nodes of which each is the parent of the next, in order."""
    first = start
    for node in range(start + 1, stop + 1):
        if node == stop or tree.parents[node] != node - 1:
            yield range(first, node)
            first = node


def _path(tree: TextTree, node: int) -> list[int]:
    """Returns the ids of a text up to a node."""
    ids = []
    while node != ROOT:
        ids.append(tree.ids[node])
        node = tree.parents[node]
    return ids[::-1]
