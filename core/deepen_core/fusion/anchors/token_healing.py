"""Token healing: where main generates shorter tokens than a member would, recovers what the member predicts.

Main generates " o". The member's text now ends in the token " o", which in its training hardly anything follows but
"ver": " on", " of" and " out" are tokens of their own, which it would have generated instead. So its distribution one
place earlier is used as well: where " o" is only the beginning of a longer token that main generates in pieces, the
probability of that token goes to what remains of it, "n", "f" or "ut".

Two rules limit this. A longer token counts only if main would have begun it the same way: main's own encoding of it
must begin with the very ids that main has generated. And the text of a chat template was not generated and always ends
where it does, so no longer token counts across its end. A plain prompt may be cut anywhere, in a word or after a blank:
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

_NEGLIGIBLE = 1e-4  # longer tokens with a smaller share of the mass than this are ignored
_REMEMBERED = 2**16


@dataclass(frozen=True)
class Healing:
    """The correction of a member's columns, for all sequences of a step.

    Attributes:
        finished: Share of the member's mass on continuations of its last token as it is, [sequences].
        open: Mass by column of the longer tokens that the last token begins, [sequences, columns].
    """

    finished: torch.Tensor
    open: torch.Tensor

    def taken(self, sequences: torch.Tensor | slice) -> Healing:
        """Returns the correction of some of the sequences."""
        at = sequences if isinstance(sequences, slice) else sequences.to(self.finished.device)
        return Healing(self.finished[at], self.open[at])

    def applied(self, mass: torch.Tensor) -> torch.Tensor:
        """Corrects projected mass [sequences, columns]."""
        return self.finished[:, None] * mass + self.open


@dataclass(frozen=True)
class Heard:
    """The end of a member's text in one sequence.

    Attributes:
        last: The member's last id.
        before: Its logits [vocabulary] for the place of that id; None if they are not kept.
        said: Main's ids of the answer so far.
        cut: Whether the text before the answer may end anywhere, like that of a plain prompt.
    """

    last: int
    before: torch.Tensor | None
    said: Sequence[int]
    cut: bool


class Healer:
    """Finds, for one member, the longer tokens that its last token begins and that main would generate in pieces.

    Args:
        vocabulary: The member's vocabulary.
        main: The main member's vocabulary.
        backend: The main member's tokenizer, which encodes the longer tokens.
        anchors: The tokens that all members share.
        size: Length of the member's embedding matrix.
    """

    def __init__(self, vocabulary: Vocabulary, main: Vocabulary, backend: Backend, anchors: Anchors, size: int) -> None:
        self._vocabulary = vocabulary
        self._main = main
        self._backend = backend
        self._columns = {token: column for column, token in enumerate(anchors.tokens)}
        self._places = anchors.columns
        # Ids only, without their bytes: pairs for a vocabulary of 262,144 tokens would take 25 MiB.
        self._sorted = [i for _, i in sorted(vocabulary.tokens.items()) if i < size]
        self._longer: dict[int, torch.Tensor] = {}
        self._left: dict[tuple[int, tuple[int, ...]], int | None] = {}

    def heal(self, sequences: Sequence[Heard]) -> Healing | None:
        """Returns the correction for some sequences, or None if there is nothing to correct."""
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
        """Returns the share of the last token as it is, and columns and shares [tokens] of the tokens it begins."""
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
        """Returns the ids of the member's tokens that begin with a given token."""
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
        """Returns the ids of the answer that overlap the member's last token; none if that token ends a prompt.

        Returns:
            None if the token begins in text after which no longer token counts.
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
        """Returns the column of main's next token towards a longer one; None if main would have begun it otherwise."""
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
    """Returns a healer for each member except main."""
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
