"""What a model says of each next byte of a given text, from all ways to cut the text into its tokens that matter.

1. The tokens of the whole text are run, and before the beginning of each, its probability so far is known.
2. From each, other tokens that spell what follows begin other ways to cut the text. Those with enough probability, and
   that the tokenizer might choose by what follows, are run together; from these again others begin, until none is left.
3. The next byte after each place is that of all tokens that reach over it, from every way to cut the text before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.given_text import Given
from deepen_core import Ensemble
from deepen_core.engine.scoring import TextReader
from deepen_core.fusion.bytes.byte_order import ByteOrder
from deepen_core.members.base import TreeRun, tree_run_of
from deepen_core.members.text_tree import ROOT, TextTree

PROBES = ("", "x", " x", "\n", "1", "'s", ".", "\u597d", " ", "X")
"""What may follow a text; a way to cut it is possible if the tokenizer cuts it so before one of them."""
_BACK = 40  # bytes before the text at which ways to cut it may begin
END = 256
"""The place of the end of the text after those of the bytes."""


@dataclass
class _Head:
    """A beginning of the text, cut into tokens: its ids, their node, its length in bytes, and their probability."""

    ids: tuple[int, ...]
    end: int
    weight: float
    node: int = ROOT
    following: int | None = None
    """The id that follows in the text's own ids, for a head among these."""


@dataclass
class _Text:
    """A text that is read: its bytes with those of the prompt, where they are told from, and what was found."""

    data: bytes
    first: int
    found: NDArray[np.float64]
    live: NDArray[np.float64]
    born: list[_Head] = field(default_factory=list)


class ByteReader:
    """Reads given texts in one model, byte by byte.

    Args:
        ensemble: Of the model alone.
        least: Ways to cut a text are run if they have at least this share of its probability.
    """

    def __init__(self, ensemble: Ensemble, least: float = 1e-3) -> None:
        self._reader = TextReader(ensemble._engine)
        self._member = ensemble._engine.members[0]
        self._vocabulary = self._member.tokenizer.vocabulary
        size = self._member.vocabulary_size
        self._order = ByteOrder(self._vocabulary, size)
        self._ids = torch.tensor(self._order.ids)
        self._stops = torch.tensor([i for i in sorted(self._vocabulary.stop_ids) if i < size], dtype=torch.long)
        self._longest = max(map(len, self._order.values))
        self._bounds: dict[bytes, NDArray[np.int64]] = {}
        self._least = least

    def read(self, given: Given) -> NDArray[np.float64]:
        """Returns the probability of each next byte, and of the end, before each byte of a text, [bytes, 257]."""
        assert isinstance(given.prompt, str), "conversations are not read"
        ids = self._reader._given(given.prompt, given.text).own_ids[0]
        data = self._vocabulary.join(ids)
        first = len(data) - len(given.text.encode())
        text = _Text(data, first, np.zeros((len(data) - first, 257)), np.zeros(len(data) + 1))
        tree, run = TextTree(), self._reader.call(lambda: tree_run_of(self._member, len(ids) + 64))
        assert run is not None, "this model cannot run trees"
        heads = self._own_heads(ids, first)
        while heads:
            for head, logits in zip(heads, self._run(tree, run, heads), strict=True):
                self._go_on(text, head, torch.softmax(logits.double(), -1), heads)
            heads = [head for head in text.born if head.weight > self._least * text.live[head.end]]
            heads = [head for head in heads if self._is_possible(text, head)]
            text.born = []
        return text.found / text.found.sum(-1, keepdims=True)

    def _own_heads(self, ids: Sequence[int], first: int) -> list[_Head]:
        """Returns the beginnings of the text's own ids, from shortly before the place where it is told."""
        heads, end = [], 0
        for count, token_id in enumerate(ids[:-1], 1):
            end += len(self._vocabulary.token_bytes(token_id) or b"")
            if end >= first - _BACK:
                heads.append(_Head(tuple(ids[:count]), end, 1.0, following=ids[count]))
        return heads

    def _run(self, tree: TextTree, run: TreeRun, heads: Sequence[_Head]) -> torch.Tensor:
        """Returns the logits after each of some heads."""
        for head in heads:
            for token_id in head.ids:
                head.node = tree.child(head.node, token_id)
        nodes = sorted({head.node for head in heads})
        logits: torch.Tensor = self._reader.call(lambda: run.run(tree, len(tree), nodes))
        return logits[[nodes.index(head.node) for head in heads]]

    def _go_on(self, text: _Text, head: _Head, p: torch.Tensor, heads: Sequence[_Head]) -> None:
        """Adds what a head says of the bytes after it, and the heads that begin there."""
        sums = np.concatenate([[0.0], torch.cumsum(p[self._ids], 0).numpy()])
        if head.end >= text.first:
            text.found[head.end - text.first, END] += head.weight * float(p[self._stops].sum())
        for place in range(head.end, min(len(text.data), head.end + self._longest)):
            bounds = self._with_next(text.data[head.end : place])
            if bounds[0] == bounds[-1]:
                break
            mass = head.weight * np.diff(sums[bounds])
            text.live[place] += mass.sum()
            if place >= text.first:
                text.found[place - text.first, :END] += mass
            token = self._vocabulary.id_of(text.data[head.end : place + 1])
            if token is not None and token != head.following and place + 1 < len(text.data):
                text.born.append(_Head((*head.ids, token), place + 1, head.weight * float(p[token])))
        if head.following is not None:
            after = next((h for h in heads if len(h.ids) == len(head.ids) + 1), None)
            if after is not None:
                after.weight = head.weight * float(p[head.following])

    def _with_next(self, start: bytes) -> NDArray[np.int64]:
        """Returns where the tokens begin that begin with some bytes and each further one, [257]."""
        if start not in self._bounds:
            low, high = self._order.beginning_with(start)
            cuts = [bisect_left(self._order.values, start + bytes([b]), low, high) for b in range(256)]
            self._bounds[start] = np.array([*cuts, high])
        return self._bounds[start]

    def _is_possible(self, text: _Text, head: _Head) -> bool:
        """Whether the tokenizer may cut the text so, by what follows."""
        try:
            begun = text.data[: head.end].decode()
        except UnicodeDecodeError:
            return True
        ids = [i for i in head.ids if self._vocabulary.token_bytes(i) is not None]
        spaced = begun.removeprefix(" ") if self._vocabulary.starts_with_space else begun
        encode = self._member.tokenizer.backend.encode
        return any(encode(spaced + probe)[: len(ids)] == ids for probe in PROBES)
