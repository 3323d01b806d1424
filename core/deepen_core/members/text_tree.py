"""Texts of one member as a tree of ids, in which each beginning that several of them share is there once.

A text that grows in main's tokens changes at its end in another member's: "th", "the", "then" are three texts of one id
each. As a tree, all states of a text, and several texts after one prompt, need little more than one forward.

Nodes are numbered in the order in which they are added, which is the order in which they are run: a parent comes before
its children. Most nodes follow their parent directly, so the ancestors of a node are few ranges of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROOT = -1

_CHANGES = 8  # a text that grows seldom changes more ids at its end


class TextTree:
    """A tree of ids.

    Attributes:
        ids: The id of each node.
        parents: Each node's parent, or `ROOT`.
        depths: Each node's position in its text, from 0.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._first: list[int] = []  # the first node of the range that ends in each node
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def child(self, parent: int, token_id: int) -> int:
        """Returns the node of an id after its parent, and adds it if it is new."""
        node = self._children.get((parent, token_id))
        if node is None:
            node = self._children[parent, token_id] = self._add(parent, token_id)
        return node

    def again(self, node: int) -> int:
        """Adds a copy of a node without its children, to run it once more."""
        return self._add(self.parents[node], self.ids[node])

    def _add(self, parent: int, token_id: int) -> int:
        node = len(self.ids)
        self.ids.append(token_id)
        self.parents.append(parent)
        self.depths.append(0 if parent == ROOT else self.depths[parent] + 1)
        self._first.append(self._first[parent] if parent == node - 1 and node else node)
        return node

    def is_chain(self, stop: int) -> bool:
        """Whether the nodes before `stop` are one text."""
        return stop > 0 and self._first[stop - 1] == 0

    def visible(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Returns which nodes each node from `start` to `stop` follows: its ancestors, and itself.

        Returns:
            bool [stop - start, stop].
        """
        found = np.zeros((stop - start, stop), dtype=bool)
        for node in range(start, stop):
            line, parent = found[node - start], self.parents[node]
            if parent >= start:
                line[:] = found[parent - start]
            else:
                while parent != ROOT:
                    first = self._first[parent]
                    line[first : parent + 1] = True
                    parent = self.parents[first]
            line[node] = True
        return found


class TextPath:
    """A text in a tree, which may change at its end.

    Args:
        tree: The tree.

    Attributes:
        ids: The ids of the text.
        nodes: Their nodes.
    """

    def __init__(self, tree: TextTree) -> None:
        self._tree = tree
        self.ids: list[int] = []
        self.nodes: list[int] = []

    def move(self, ids: Sequence[int]) -> None:
        """Changes the text; nodes that are new are added to the tree."""
        same = common_length(self.ids, ids)
        del self.nodes[same:]
        for token_id in ids[same:]:
            self.nodes.append(self._tree.child(self.nodes[-1] if self.nodes else ROOT, token_id))
        self.ids = list(ids)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns the length of the common beginning of two texts, in ids."""
    start = max(0, min(len(one), len(other)) - _CHANGES)
    if one[:start] != other[:start]:  # comparing whole lists is fast
        start = 0
    same = (n for n, (a, b) in enumerate(zip(one[start:], other[start:], strict=False)) if a != b)
    return start + next(same, min(len(one), len(other)) - start)
