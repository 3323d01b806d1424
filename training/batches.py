"""Lessons as batches of token ids with a weight for every token that is to be predicted."""

# ruff: noqa: S311 - nothing here is secret

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from demo_tokenizers import SPECIALS, WINDOW, token_bytes
from lessons import Kind, Lesson, Teacher
from tokenizers import Tokenizer
from torch import Tensor

TOKENS = 2560
"""Most tokens that a batch holds, filling included."""
POOL: dict[Kind, int] = {"short": 2400, "context": 160, "long": 12, "mixed": 24, "focus": 40, "copy": 100}
POOL |= {"sums": 1000, "drill": 300, "note": 1000, "notes": 1000, "reading": 160}
POOL |= {"quotes": 800, "steps": 120, "objects": 160}
"""Lessons drawn at once, sorted by length and cut into batches, so that little of a batch is filling."""
SPLIT_ROWS = 0.25
SPLIT_TOKENS = 0.2
"""In this share of rows this share of tokens is spelled in two shorter ones.

A member has to go on from where the others left off, which may be the middle of a word; and tokens that only
occur inside of others get a meaning, without which they would lie in one heap and say nothing as anchors.
"""

_Row = tuple[list[int], list[float]]


@dataclass
class Batch:
    """One step of training.

    Attributes:
        ids: [rows, width] token ids, filled up on the right.
        positions: [rows, width] positions, from a random start so that late positions are learned too.
        weights: [rows, width] how much predicting this token counts. 0 for BOS and filling.
    """

    ids: Tensor
    positions: Tensor
    weights: Tensor


class Splitter:
    """Spells some tokens in two shorter ones.

    Args:
        pieces: The bytes of each token.
        rng: Decides which.
    """

    def __init__(self, pieces: dict[int, bytes], rng: random.Random) -> None:
        self._bytes = pieces
        self._ids = {piece: token for token, piece in pieces.items()}
        self._rng = rng

    def maybe(self, row: list[int], weights: list[float]) -> _Row:
        """Returns the ids and weights of a row, of which a share is spelled otherwise."""
        if self._rng.random() >= SPLIT_ROWS:
            return row, weights
        ids: list[int] = []
        kept: list[float] = []
        for token, weight in zip(row, weights, strict=True):
            piece = self._bytes.get(token, b"")
            cuts = [at for at in range(1, len(piece)) if piece[:at] in self._ids and piece[at:] in self._ids]
            if cuts and self._rng.random() < SPLIT_TOKENS:
                at = self._rng.choice(cuts)
                ids += [self._ids[piece[:at]], self._ids[piece[at:]]]
                # Only going on is learned, not to begin so.
                kept += [0.0, weight]
            else:
                ids.append(token)
                kept.append(weight)
        return ids, kept


class Batches:
    """Endless batches for one member, the same for the same seed.

    Args:
        teacher: Where lessons come from.
        tokenizer: The member's, which puts BOS in front.
        kind: `bpe` or `unigram`.
        seed: Decides the order of kinds and the positions.
    """

    def __init__(self, teacher: Teacher, tokenizer: Tokenizer, kind: str, seed: int) -> None:
        self.teacher = teacher
        self.tokenizer = tokenizer
        self.eos = tokenizer.get_vocab()[SPECIALS[kind][1]]
        self.rng = random.Random(f"batches/{seed}")
        self._ready: dict[Kind, list[list[_Row]]] = {kind: [] for kind in POOL}
        self._bytes = token_bytes(tokenizer, kind)
        self._splitter = Splitter(self._bytes, self.rng)

    def next(self, kinds: dict[Kind, float]) -> Batch:
        """A batch of one kind, drawn by the given shares."""
        kind = self.rng.choices(list(kinds), weights=list(kinds.values()))[0]
        if not self._ready[kind]:
            self._ready[kind] = self._cut([self._row(kind) for _ in range(POOL[kind])])
            self.rng.shuffle(self._ready[kind])
        rows = self._ready[kind].pop()
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.eos)
        weights = torch.zeros(len(rows), width)
        starts = torch.zeros(len(rows), 1, dtype=torch.long)
        for index, (row_ids, row_weights) in enumerate(rows):
            ids[index, : len(row_ids)] = torch.tensor(row_ids)
            weights[index, : len(row_ids)] = torch.tensor(row_weights)
            # Half of the rows begin where generation begins.
            starts[index] = self.rng.randrange(WINDOW - width + 1) if self.rng.random() < 0.5 else 0
        return Batch(ids, starts + torch.arange(width), weights)

    def _cut(self, rows: list[_Row]) -> list[list[_Row]]:
        batches: list[list[_Row]] = []
        for row in sorted(rows, key=lambda row: len(row[0])):
            if not batches or (len(batches[-1]) + 1) * len(row[0]) > TOKENS:
                batches.append([])
            batches[-1].append(row)
        return batches

    def _row(self, kind: Kind) -> _Row:
        if kind == "copy":
            return self._copy()
        ids, weights = self._splitter.maybe(*self._weigh(self.teacher.lesson(kind)))
        return ids[:WINDOW], weights[:WINDOW]

    def _copy(self) -> _Row:
        """Any tokens at all, twice: gives each token an identity and teaches to look back."""
        tokens = self.rng.choices(list(self._bytes), k=self.rng.randrange(8, 48))
        ids = [self.tokenizer.encode("").ids[0], *tokens, *tokens]
        return ids, [0.0] * (len(tokens) + 1) + [1.0] * len(tokens)

    def _weigh(self, lesson: Lesson) -> _Row:
        encoding = self.tokenizer.encode(lesson.text)
        ids = [*encoding.ids[: WINDOW - 1], self.eos]
        weights = [0.0] * len(ids)
        weights[-1] = 1.0
        span = 0
        for index, (start, end) in enumerate(encoding.offsets[: WINDOW - 1]):
            if end == start:
                continue
            while span < len(lesson.spans) - 1 and lesson.spans[span][1] < end:
                span += 1
            weights[index] = lesson.spans[span][2]
        return ids, weights
