"""What a member may still have meant when main speaks in shorter tokens than its own.

Main says " o", and the member, whose text now ends in the token " o", is asked what follows. By its habits hardly
anything does but "ver": " on", " of" and " out" are tokens of their own, which it would have chosen instead. So it is
asked for the token before as well: where " o" was only the beginning of a token that main has no word for, the mass
of that token goes to what is left of it to say, "n", "f" or "ut".
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch

from deepen_core.anchors import Anchors
from deepen_core.vocabulary import Vocabulary

_NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class Healing:
    """How a member's columns are corrected, for all rows of a step.

    Attributes:
        finished: Share of the member's mass that goes on behind its last token as it stands, [rows].
        open: Mass on columns for tokens of which the last one is only the beginning, [rows, anchors + 2].
    """

    finished: torch.Tensor
    open: torch.Tensor

    def taken(self, rows: torch.Tensor | slice) -> Healing:
        """The correction of some of the rows."""
        at = rows if isinstance(rows, slice) else rows.to(self.finished.device)
        return Healing(self.finished[at], self.open[at])

    def applied(self, mass: torch.Tensor) -> torch.Tensor:
        """Corrects projected mass [rows, anchors + 2]."""
        return self.finished[:, None] * mass + self.open


class Healer:
    """Finds, for one member, the tokens that its last token begins and main cannot say at once.

    Args:
        vocabulary: The member's.
        main: The main member's.
        anchors: What all members share.
        size: Rows of the member's embedding matrix.
    """

    def __init__(self, vocabulary: Vocabulary, main: Vocabulary, anchors: Anchors, size: int) -> None:
        self._vocabulary = vocabulary
        self._columns = {token: column for column, token in enumerate(anchors.tokens)}
        self._anchors = len(anchors)
        longer = ((v, i) for v, i in vocabulary.tokens.items() if i < size and v not in main.tokens)
        self._sorted = sorted(longer)
        self._found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def heal(self, rows: list[tuple[int, torch.Tensor | None]]) -> Healing | None:
        """The correction for some rows, or None if there is nothing to correct.

        Args:
            rows: For each row the member's last id, and its logits [vocabulary] for that place if they are known.
        """
        finished: torch.Tensor | None = None
        opened: torch.Tensor | None = None
        for row, (last, before) in enumerate(rows):
            if before is None:
                continue
            ids, columns = self._extensions(last)
            if not len(ids):
                continue
            logits = before[torch.cat([ids, ids.new_tensor([last])]).to(before.device)]
            shares = torch.softmax(logits, dim=-1)
            if finished is None or opened is None:
                finished = shares.new_ones(len(rows))
                opened = shares.new_zeros(len(rows), self._anchors + 2)
            if float(shares[-1]) > 1 - _NEGLIGIBLE:
                continue
            finished[row] = shares[-1]
            opened[row].scatter_add_(0, columns.to(shares.device), shares[:-1])
        return None if finished is None or opened is None else Healing(finished, opened)

    def _extensions(self, token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the tokens that a token begins, and the column of what is left of each."""
        if token_id not in self._found:
            start = self._vocabulary.token_bytes(token_id) or b""
            ids, columns = [], []
            place = bisect_left(self._sorted, (start, -1)) if start else len(self._sorted)
            while place < len(self._sorted) and self._sorted[place][0].startswith(start):
                value, longer = self._sorted[place]
                place += 1
                if len(value) > len(start):
                    ids.append(longer)
                    columns.append(self._column(value[len(start) :]))
            self._found[token_id] = (torch.tensor(ids, dtype=torch.long), torch.tensor(columns, dtype=torch.long))
        return self._found[token_id]

    def _column(self, left: bytes) -> int:
        """The longest anchor that some bytes begin with, or the unknown column."""
        starts = (left[:n] for n in range(len(left), 0, -1))
        return next((self._columns[s] for s in starts if s in self._columns), self._anchors + 1)
