"""Rows of a relative matrix in sparse form: some by their largest entries, all others by a single column.

Columns are those of `deepen_core.fusion.anchors.columns`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deepen_core.fusion.anchors.columns import Columns


@dataclass(frozen=True)
class SparseRows:
    """Rows by their largest entries; the mass below them is distributed much alike for all tokens.

    Attributes:
        index: int64 [..., tokens, entries], columns.
        value: float32 [..., tokens, entries], mass on these columns.
        spread: float32 [..., tokens], mass below the entries.
    """

    index: torch.Tensor
    value: torch.Tensor
    spread: torch.Tensor

    def taken(self, rows: slice, tokens: int) -> SparseRows:
        """Returns the first tokens of some sequences of the batch."""
        return SparseRows(
            self.index[rows, :tokens].contiguous(),
            self.value[rows, :tokens].contiguous(),
            self.spread[rows, :tokens].contiguous(),
        )


class TokenRows:
    """All tokens of a vocabulary: some with rows of their own, the others summed by column.

    Probabilities [batch, some + gathered columns] are those of the tokens with rows, then the sum of all others of
    each column, then the sum of the tokens that have neither. A token that is represented by an anchor keeps `keeps` of
    its mass there, like the median row. The mass that it does not keep, and the mass below the entries of a row, is
    spread over the anchors like the mean row's; a token with neither row nor column spreads all its mass.

    Args:
        rows: Rows of some tokens [batch, some].
        tail: How mass is spread, float32 [anchors], summing to one.
        keeps: Self-mass of tokens without a row.
        exact_tail: Places among `some`, and the exact mass below the entries of their rows [places, anchors]. Only for
            a batch of one.
    """

    def __init__(
        self,
        rows: SparseRows,
        tail: torch.Tensor,
        keeps: float,
        exact_tail: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self._at = rows.index.flatten(-2)  # [batch, some * entries]
        self._value, self._spread = rows.value, rows.spread
        self._tail, self._columns, self._keeps = tail, Columns(len(tail)), keeps
        self._exact_tail = exact_tail
        if exact_tail is not None:
            self._spread = self._spread.index_fill(-1, exact_tail[0], 0.0)

    def project(self, probs: torch.Tensor) -> torch.Tensor:
        """`p R`, [batch, some + gathered columns] -> [batch, columns]."""
        some, anchors = self._spread.shape[-1], self._columns.anchors
        one, rest = probs[:, :some], probs[:, some:]
        spread = (1 - self._keeps) * rest[:, :anchors].sum(-1, keepdim=True)
        spread += (one * self._spread).sum(-1, keepdim=True) + rest[:, -1:]
        columns = rest.new_empty(len(rest), self._columns.width)
        torch.mul(rest[:, :anchors], self._keeps, out=columns[:, :anchors]).addcmul_(spread, self._tail)
        columns[:, anchors:] = rest[:, anchors:-1]
        if self._exact_tail is not None:
            places, rests = self._exact_tail
            columns[:, :anchors] += one[:, places] @ rests
        return columns.scatter_add_(-1, self._at, (one.unsqueeze(-1) * self._value).flatten(-2))

    def lift(self, columns: torch.Tensor) -> torch.Tensor:
        """`R x`, [batch, columns] -> [batch, some + gathered columns]."""
        some, anchors = self._spread.shape[-1], self._columns.anchors
        mean = columns[:, :anchors] @ self._tail[:, None]  # [batch, 1]
        lifted = columns.new_empty(len(columns), some + self._columns.gathered)
        taken = (columns.gather(-1, self._at).view(self._value.shape) * self._value).sum(-1)
        torch.addcmul(taken, self._spread, mean, out=lifted[:, :some])
        torch.add(
            (1 - self._keeps) * mean, columns[:, :anchors], alpha=self._keeps, out=lifted[:, some : some + anchors]
        )
        lifted[:, some + anchors : -1] = columns[:, anchors:]
        lifted[:, -1:] = mean
        if self._exact_tail is not None:
            places, rests = self._exact_tail
            lifted[:, places] += columns[:, :anchors] @ rests.T
        return lifted
