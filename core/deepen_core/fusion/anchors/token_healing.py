"""What a member may still have meant when main speaks in shorter tokens than its own.

Main says " o", and the member, whose text now ends in the token " o", is asked what follows. By its habits hardly
anything does but "ver": " on", " of" and " out" are tokens of their own, which it would have chosen instead. So it is
asked for the token before as well: where " o" was only the beginning of a token that main has no word for, the mass
of that token goes to what is left of it to say, "n", "f" or "ut".

Two things bound this. A longer token counts only if main would have begun to say it as it did: main's own encoding of
it begins with the very ids that main has said. And what a chat template wrote was nobody's choice and always ends
there, so no longer token can have been meant by it. A plain prompt may be cut anywhere, in a word or behind a blank:
there every longer token counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

import torch

from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.members.base import Member
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.vocabulary import Vocabulary

_NEGLIGIBLE = 1e-4  # a longer token with less of the mass than this is not looked into
_REMEMBERED = 2**16


@dataclass(frozen=True)
class Healing:
    """How a member's columns are corrected, for all sequences of a step.

    Attributes:
        finished: Share of the member's mass that goes on behind its last token as it stands, [sequences].
        open: Mass on columns for tokens of which the last one is only the beginning, [sequences, columns].
    """

    finished: torch.Tensor
    open: torch.Tensor

    def taken(self, sequences: torch.Tensor | slice) -> Healing:
        """The correction of some of the sequences."""
        at = sequences if isinstance(sequences, slice) else sequences.to(self.finished.device)
        return Healing(self.finished[at], self.open[at])

    def applied(self, mass: torch.Tensor) -> torch.Tensor:
        """Corrects projected mass [sequences, columns]."""
        return self.finished[:, None] * mass + self.open


@dataclass(frozen=True)
class Heard:
    """What a member has heard last, in one sequence.

    Attributes:
        last: The member's last id.
        before: Its logits [vocabulary] for the place of that id; None if they are not at hand.
        said: Main's ids of the answer so far.
        cut: Whether the text before these may end anywhere, as that of a plain prompt.
    """

    last: int
    before: torch.Tensor | None
    said: Sequence[int]
    cut: bool


class Healer:
    """Finds, for one member, the tokens that its last token begins and that main would say piece by piece.

    Args:
        vocabulary: The member's.
        main: The main member's.
        backend: The main member's, which says how main would put a longer token.
        anchors: What all members share.
        size: Length of the member's embedding matrix.
    """

    def __init__(self, vocabulary: Vocabulary, main: Vocabulary, backend: Backend, anchors: Anchors, size: int) -> None:
        self._vocabulary = vocabulary
        self._main = main
        self._backend = backend
        self._columns = {token: column for column, token in enumerate(anchors.tokens)}
        self._places = anchors.columns
        # Ids, not pairs with their bytes: a vocabulary of 262,144 tokens would take 25 MiB.
        self._sorted = [i for _, i in sorted(vocabulary.tokens.items()) if i < size]
        self._longer: dict[int, torch.Tensor] = {}
        self._left: dict[tuple[int, tuple[int, ...]], int | None] = {}

    def heal(self, sequences: Sequence[Heard]) -> Healing | None:
        """The correction for some sequences, or None if there is nothing to correct."""
        finished: torch.Tensor | None = None
        opened: torch.Tensor | None = None
        for sequence, heard in enumerate(sequences):
            if heard.before is None:
                continue
            found = self._open(heard, heard.before)
            if found is None:
                continue
            share, columns, shares = found
            if finished is None or opened is None:
                finished = shares.new_ones(len(sequences))
                opened = shares.new_zeros(len(sequences), self._places.width)
            finished[sequence] = share
            opened[sequence].scatter_add_(0, columns, shares)
        return None if finished is None or opened is None else Healing(finished, opened)

    def _open(self, heard: Heard, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """The share of the last token as it stands, and columns and shares [tokens] of those that it only begins."""
        longer = self._longer_than(heard.last)
        said = self._said(heard) if len(longer) else None
        if said is None:
            return None
        logits = before[torch.cat([longer, longer.new_tensor([heard.last])]).to(before.device)]
        shares = torch.softmax(logits, dim=-1)
        likely = (shares[:-1] > _NEGLIGIBLE).nonzero()[:, 0].tolist()
        lefts = [self._column_left(int(longer[place]), heard.last, said) for place in likely]
        kept = [(place, column) for place, column in zip(likely, lefts, strict=True) if column is not None]
        if not kept:
            return None
        shares = shares[[place for place, _ in kept] + [-1]]
        shares = shares / shares.sum()
        return shares[-1], torch.tensor([column for _, column in kept], device=shares.device), shares[:-1]

    def _longer_than(self, token_id: int) -> torch.Tensor:
        """Ids of the member's tokens that a token begins."""
        if token_id not in self._longer:
            start = self._bytes(token_id)
            first = bisect_left(self._sorted, start, key=self._bytes) if start else len(self._sorted)
            begun = takewhile(lambda i: self._bytes(i).startswith(start), islice(self._sorted, first, None))
            ids = [i for i in begun if len(self._bytes(i)) > len(start)]
            self._longer[token_id] = torch.tensor(ids, dtype=torch.long)
        return self._longer[token_id]

    def _bytes(self, token_id: int) -> bytes:
        return self._vocabulary.token_bytes(token_id) or b""

    def _said(self, heard: Heard) -> tuple[int, ...] | None:
        """The ids of the answer that the member's last token lies in, none if it ends a prompt.

        Returns:
            None if the token begins in text that no longer token can have been meant by.
        """
        value = self._bytes(heard.last)
        data, count = b"", 0
        while len(data) < len(value) or not _is_text(data):
            if count == len(heard.said):
                return tuple(heard.said) if heard.cut and value.endswith(data) else None
            count += 1
            data = (self._main.token_bytes(heard.said[-count]) or b"") + data
        return tuple(heard.said[len(heard.said) - count :]) if data.endswith(value) else None

    def _column_left(self, longer: int, last: int, said: tuple[int, ...]) -> int | None:
        """The column of what main would say next on its way to a longer token; None if it had begun it otherwise."""
        key = (longer, said)
        if key not in self._left:
            if len(self._left) >= _REMEMBERED:
                self._left.clear()
            self._left[key] = self._find_column(longer, last, said)
        return self._left[key]

    def _find_column(self, longer: int, last: int, said: tuple[int, ...]) -> int | None:
        whole = self._main.join(said) + self._bytes(longer)[len(self._bytes(last)) :]
        if not _is_text(whole):
            return None
        readings = self._backend.encode_behind(whole.decode())
        ids = next((ids for ids in readings if self._main.join(ids) == whole), [])
        if tuple(ids[: len(said)]) != said or len(ids) == len(said):
            return None
        token = self._main.token_bytes(ids[len(said)]) or b""
        starts = (token[:n] for n in range(len(token), 0, -1))
        return next((self._columns[s] for s in starts if s in self._columns), self._places.unknown)


def healers_of(members: Sequence[Member], main: int, anchors: Anchors) -> list[Healer | None]:
    """A healer for each member but main."""
    spoken = members[main].tokenizer
    return [
        None
        if number == main
        else Healer(m.tokenizer.vocabulary, spoken.vocabulary, spoken.backend, anchors, m.vocabulary_size)
        for number, m in enumerate(members)
    ]


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
