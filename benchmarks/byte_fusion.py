"""What fusing by bytes is worth on real pairs, against fusing by shared tokens: bits a byte of given text.

Run with `python -m benchmarks.byte_fusion --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`.
Every member's distribution of the next byte is computed from all ways to cut the text into its tokens that matter, and
these are averaged, or multiplied. That is the best that fusing by bytes can do, and takes more forwards than a step.
"""

from __future__ import annotations

import argparse
import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.given_text import KINDS, SETS, Given, beginnings, opened
from deepen_core import Ensemble
from deepen_core.engine.scoring import TextReader
from deepen_core.fusion.bytes.byte_order import ByteOrder
from deepen_core.members.base import tree_run_of
from deepen_core.members.text_tree import ROOT, TextTree

_PROBES = ("", "x", " x", "\n", "1", "'s", ".", "\u597d", " ", "X")
"""What may follow a text; a way to cut it is kept if the tokenizer cuts it so before one of them."""
_BACK = 40  # bytes before the text at which ways to cut it may begin


@dataclass
class _Head:
    """A beginning of the text, cut into tokens.

    Attributes:
        node: Its node in the tree.
        ids: Its ids, from the start.
        end: Number of bytes.
        weight: The probability of these tokens, relative to the first head's.
    """

    node: int
    ids: tuple[int, ...]
    end: int
    weight: float


class ByteReader:
    """Reads given texts in one model, byte by byte.

    Args:
        ensemble: Of the model alone.
        eps: Ways to cut a text are run if they have at least this share of its probability.
    """

    def __init__(self, ensemble: Ensemble, eps: float) -> None:
        self._reader = TextReader(ensemble._engine)
        self._member = ensemble._engine.members[0]
        self._vocabulary = self._member.tokenizer.vocabulary
        self._order = ByteOrder(self._vocabulary, self._member.vocabulary_size)
        self._ids = torch.tensor(self._order.ids)
        self._stops = torch.tensor(sorted(i for i in self._vocabulary.stop_ids if i < self._member.vocabulary_size))
        self._longest = max(map(len, self._order.values))
        self._children: dict[bytes, np.ndarray] = {}
        self._eps = eps
        self.forwards = 0
        self.ids_run = 0

    def _bounds(self, start: bytes) -> np.ndarray:
        """Where the tokens with each further byte begin, [257]."""
        if start not in self._children:
            values = self._order.values
            low, high = self._order.beginning_with(start)
            cuts = [bisect_left(values, start + bytes([b]), low, high) for b in range(256)]
            self._children[start] = np.array([*cuts, high])
        return self._children[start]

    def read(self, given: Given) -> np.ndarray:
        """Returns the probabilities of each next byte, and of the end, before each byte of a text, [bytes, 257]."""
        text = self._reader._given(given.prompt, given.text)
        ids = text.own_ids[0]
        whole = (given.prompt + given.text).encode()
        first = len(given.prompt.encode())
        values = [self._vocabulary.token_bytes(i) or b"" for i in ids]
        dummy = 1 if b"".join(values) == b" " + whole else 0
        whole, first = b" " * dummy + whole, first + dummy
        assert b"".join(values) == whole
        tree = TextTree()
        run = self._reader.call(lambda: tree_run_of(self._member, len(ids) + 64))
        node, chain, ends, end = ROOT, [], [], 0
        for token_id, value in zip(ids, values, strict=True):
            node = tree.child(node, token_id)
            end += len(value)
            chain.append(node)
            ends.append(end)
        at = next(n for n in range(len(ids)) if ends[n] >= max(1, first - _BACK))
        heads = [_Head(n, tuple(ids[: n + 1]), e, 0.0) for n, e in zip(chain, ends, strict=True)][at:-1]
        heads[0].weight = 1.0
        chain_next = {heads[n].node: ids[at + n + 1] for n in range(len(heads))}
        live = np.zeros(len(whole) + 1)
        found = np.zeros((len(whole) - first, 257))
        self._forwards(tree, run, heads)
        todo, weight = heads, 1.0
        while todo:
            born: list[_Head] = []
            logits = self._held
            for number, head in enumerate(todo):
                if head.node in chain_next:
                    head.weight = weight
                p = torch.softmax(logits[number].double(), -1)
                sums = np.concatenate([[0.0], torch.cumsum(p[self._ids], 0).numpy()])
                if head.end >= first:
                    found[head.end - first, 256] += head.weight * float(p[self._stops].sum())
                for k in range(head.end, min(len(whole), head.end + self._longest)):
                    bounds = self._bounds(whole[head.end : k])
                    if bounds[0] == bounds[-1]:
                        break
                    mass = head.weight * np.diff(sums[bounds])
                    live[k] += mass.sum()
                    if k >= first:
                        found[k - first, :256] += mass
                    token = self._vocabulary.id_of(whole[head.end : k + 1])
                    if token is not None and token != chain_next.get(head.node):
                        born.append(_Head(-1, (*head.ids, token), k + 1, head.weight * float(p[token])))
                if head.node in chain_next:
                    weight *= float(p[chain_next[head.node]])
            born = [h for h in born if h.weight > self._eps * live[h.end] and h.end < len(whole) and self._valid(whole, dummy, h, ids)]
            for head in born:
                parent = ROOT
                for token in head.ids:
                    parent = tree.child(parent, token)
                head.node = parent
            if born:
                self._forwards(tree, run, born)
            todo = born
        return found / found.sum(-1, keepdims=True)

    def _forwards(self, tree: TextTree, run, heads: Sequence[_Head]) -> None:
        nodes = [h.node for h in heads]
        order = sorted(set(nodes))
        logits = self._reader.call(lambda: run.run(tree, len(tree), order))
        self.forwards += 1
        self.ids_run += len(order)
        place = {n: i for i, n in enumerate(order)}
        self._held = logits[[place[n] for n in nodes]]

    def _valid(self, whole: bytes, dummy: int, head: _Head, ids: Sequence[int]) -> bool:
        try:
            text = whole[dummy : head.end].decode()
        except UnicodeDecodeError:
            return True
        backend = self._member.tokenizer.backend
        bos = len(ids) and ids[0] == self._vocabulary.bos_id
        own = list(head.ids[1:] if bos else head.ids)
        return any(backend.encode(text + c)[: len(own)] == own for c in _PROBES)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"))
    parser.add_argument("--names", nargs="*", default=["smollm2-135m", "qwen-coder-0.5b", "gemma3-270m"])
    parser.add_argument("--texts", type=int, default=3)
    parser.add_argument("--fitted", type=int, default=3)
    parser.add_argument("--characters", type=int, default=600)
    parser.add_argument("--eps", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        with opened(given.models, [name], "bfloat16") as ensemble:
            reader = ByteReader(ensemble, given.eps)
            for kind in (*KINDS, "other code", "advice"):
                start, saved = time.time(), {}
                for n, text in enumerate(beginnings(kind, given.texts, given.characters)):
                    saved[str(n)] = reader.read(text).astype(np.float32)
                    b = np.frombuffer(text.text.encode(), np.uint8)
                    bits = -np.log2(saved[str(n)][np.arange(len(b)), b]).mean()
                    print(name, kind, n, f"{bits:.4f}", reader.forwards, reader.ids_run, f"{time.time() - start:.0f}s", flush=True)
                given.out.mkdir(exist_ok=True)
                np.savez(given.out / f"{name}-{kind}.npz", **saved)


if __name__ == "__main__":
    main()
