"""Columns: the classes by which the tokens of members with different vocabularies are compared.

There is one column per anchor, followed by three more: **stop**, for every token that ends a text; **unknown**, for
tokens that no other member can have (control tokens, ids without a token); and one for tokens without a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Columns:
    """Indices of the columns.

    Attributes:
        anchors: Number of anchors; their columns come first.
    """

    anchors: int

    @property
    def stop(self) -> int:
        """The column of tokens that end a text."""
        return self.anchors

    @property
    def unknown(self) -> int:
        """The column of tokens that no other member can have."""
        return self.anchors + 1

    @property
    def width(self) -> int:
        """Number of columns by which members are compared: the anchors, stop and unknown."""
        return self.anchors + 2

    @property
    def uncolumned(self) -> int:
        """The column that gathers tokens without one; it follows those by which members are compared."""
        return self.width

    @property
    def gathered(self) -> int:
        """Number of columns including that one."""
        return self.width + 1


class TokenColumns:
    """The column of each of one member's tokens.

    Args:
        columns: Indices of the columns.
        anchor_ids: The member's ids of the anchors, int64 [anchors].
        fixed: The column of tokens that are not anchors, -1 for those without one, int32 [vocabulary].

    Attributes:
        columns: As given.
        of: int64 [vocabulary], between 0 and `columns.uncolumned`.
    """

    def __init__(self, columns: Columns, anchor_ids: torch.Tensor, fixed: torch.Tensor) -> None:
        self.columns = columns
        self._anchor_ids = anchor_ids
        self.of = torch.where(fixed < 0, columns.uncolumned, fixed.long())
        self.of[anchor_ids] = torch.arange(columns.anchors, device=fixed.device)

    @property
    def others(self) -> torch.Tensor:
        """Ids of the tokens that are not anchors, int64 [others]."""
        others = torch.ones(len(self.of), dtype=torch.bool, device=self.of.device)
        others[self._anchor_ids] = False
        return others.nonzero()[:, 0]

    @property
    def bytes_held(self) -> int:
        """Memory of its tensor, without the anchors' ids, which it does not own."""
        return self.of.numel() * self.of.element_size()

    def sum_by_column(self, values: torch.Tensor, into: torch.Tensor) -> None:
        """Sums the values of the tokens of each column.

        Args:
            values: float32 [sequences, vocabulary].
            into: Output, overwritten, float32 [sequences, columns.gathered].
        """
        into.zero_().scatter_add_(-1, self.of.expand(len(values), -1), values)

    def scatter_back(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the value of each token's column, [sequences, columns.gathered] -> [sequences, vocabulary]."""
        return values.gather(-1, self.of.expand(len(values), -1))
