r"""Token healing: where main generates shorter tokens than a member would, recovers what the member predicts.

Main generates " o". The member's text now ends in the token " o", which in its training hardly anything follows but
"ver": " on", " of" and " out" are tokens of their own, which it would have generated instead. So its distribution one
place earlier is used as well: where " o" is only the beginning of a longer token that main generates in pieces, the
probability of that token goes to what remains of it, "n", "f" or "ut".

Two rules limit this. A longer token counts only if main would have begun it the same way: main's own encoding of it
must begin with the very ids that main has generated. And the text of a chat template was not generated and always ends
where it does, so no longer token counts across its end. A plain prompt may be cut anywhere, in a word or after a blank:
there every longer token counts.

What remains of a longer token need not be where main's next token ends: behind "\n   " main says " return", where the
member says four spaces and then "return". So the probability of a longer token also goes to main's tokens that begin
with what remains of it, in proportion to main's probabilities: all that the member says about them is their beginning.
Where it has a token of its own that reaches further into one of them, it would have said that, so that one is left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepen_core.fusion.anchors.segmentation import WORD, Segmentation, is_text
from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.members.base import Member

_NEGLIGIBLE = 1e-4  # longer tokens with a smaller share of the mass than this are ignored
_MOST = 64  # and so are all but the most probable ones: thousands would be likely if the member knew nothing
_NOTICEABLE = 0.01  # only tokens of at least this probability are taken from a member that main has ruled out
_REMEMBERED_COLUMNS = 2**8  # lists of columns, each at most as long as there are anchors


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
        return self.finished[:, None].to(mass.device) * mass + self.open.to(mass.device)


@dataclass(frozen=True)
class Heard:
    """The end of a member's text in one sequence.

    Attributes:
        last: The member's last id.
        before: Its logits [vocabulary] for the place of that id; None if they are not kept.
        said: Main's ids of the answer so far.
        cut: Whether the text before the answer may end anywhere, like that of a plain prompt.
        dummy: Whether the member's answer begins with a blank that main has not said.
        held: Whether the member's ids leave out the last blank of the text, see `MemberSequence.holds_blank`.
        trail: The member's last ids, the last one first, each with the logits [vocabulary] that it was chosen from: as
            far back as they are kept, and as the text might have been cut otherwise.
    """

    last: int
    before: torch.Tensor | None
    said: Sequence[int]
    cut: bool
    dummy: bool = False
    held: bool = False
    trail: Sequence[tuple[int, torch.Tensor]] = ()


@dataclass(frozen=True)
class _Left:
    """What is left to generate of a longer token.

    Attributes:
        column: The column of main's next token towards it.
        begun: The bytes that are left, if main's next token contains all of them; None if it takes more than one token.
    """

    column: int
    begun: bytes | None


class Healer:
    """Finds, for one member, the longer tokens that its last token begins and that main would generate in pieces.

    Args:
        member: How the member cuts a text.
        main: How main does.
        anchors: The tokens that all members share.
        size: Length of the member's embedding matrix.
    """

    def __init__(self, member: Segmentation, main: Segmentation, anchors: Anchors, size: int) -> None:
        self._member = member
        self._main = main
        self._tokens = anchors.tokens
        self._columns = {token: column for column, token in enumerate(anchors.tokens)}
        self._places = anchors.columns
        tokens = member.vocabulary.tokens
        self._sorted_tokens = sorted(token for token, i in tokens.items() if i < size)  # the vocabulary's own objects
        self._sorted = torch.tensor([tokens[token] for token in self._sorted_tokens], dtype=torch.long)
        self._longer: dict[int, torch.Tensor] = {}
        self._begun: dict[tuple[int, bytes], torch.Tensor] = {}

    def healed(self, mass: torch.Tensor, sequences: Sequence[Heard], own: torch.Tensor) -> torch.Tensor:
        """Returns the member's corrected mass by column, summing to at most what it summed to.

        Args:
            mass: float32 [sequences, columns], on main's device; may be overwritten.
            sequences: The ends of the member's texts.
            own: Main's mass by column [sequences, at least the anchors' columns].
        """
        if not sequences:
            return mass
        healing = self.heal(sequences, own)
        return self._without_ruled_out(mass if healing is None else healing.applied(mass), sequences)

    def heal(self, sequences: Sequence[Heard], own: torch.Tensor) -> Healing | None:
        """Returns the correction for some sequences, or None if there is nothing to correct.

        Args:
            sequences: The ends of the member's texts.
            own: Main's mass by column [sequences, at least the anchors' columns].
        """
        # Few numbers in many steps: on a GPU each step would cost more than copying what they read.
        mains = own.cpu() if any(heard.before is not None for heard in sequences) else own
        finished: torch.Tensor | None = None
        opened: torch.Tensor | None = None
        for sequence, heard in enumerate(sequences):
            if heard.before is None:
                continue
            found = self._open(heard, heard.before, mains[sequence])
            if found is None:
                continue
            share, columns, shares = found
            if finished is None or opened is None:
                finished = shares.new_ones(len(sequences))
                opened = shares.new_zeros(len(sequences), self._places.width)
            finished[sequence] = share
            opened[sequence].scatter_add_(0, columns, shares)
        if finished is None or opened is None:
            return None
        return Healing(finished.to(own.device), opened.to(own.device))

    def _open(
        self, heard: Heard, before: torch.Tensor, own: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Returns the share of the last token as it is, and columns and shares [places] of the tokens it begins."""
        longer = self._longer_than(heard.last)
        said = self._said(heard) if len(longer) else None
        if said is None:
            return None
        logits = before[torch.cat([longer, longer.new_tensor([heard.last])]).to(before.device)].float().cpu()
        shares = torch.softmax(logits, dim=-1)
        most, places = shares[:-1].topk(min(_MOST, len(longer)))
        likely = sorted(places[most > _NEGLIGIBLE].tolist())
        lefts = [self._what_is_left(int(longer[place]), heard.last, said) for place in likely]
        kept = [(place, left) for place, left in zip(likely, lefts, strict=True) if left is not None]
        if not kept:
            return None
        shares = shares[[place for place, _ in kept] + [-1]]
        shares = shares / shares.sum()
        columns, parts = [], []
        for share, (place, left) in zip(shares[:-1], kept, strict=True):
            at, part = self._spread(int(longer[place]), left, own)
            columns.append(at)
            parts.append(share * part)
        return shares[-1], torch.cat(columns), torch.cat(parts)

    def _spread(self, longer: int, left: _Left, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the columns that share the probability of a longer token, and their shares, summing to one."""
        if left.begun is not None:
            columns = self._begun_columns(longer, left.begun)
            mass = own[columns]
            total = mass.sum()
            if total > 0:
                return columns, mass / total
        return torch.tensor([left.column]), own.new_ones(1)

    def _begun_columns(self, longer: int, left: bytes) -> torch.Tensor:
        """Returns the columns of the anchors that begin with what is left of a longer token, as the member would.

        Anchors into which a still longer token of the member's reaches are not among them.
        """
        key = (longer, left)
        if key not in self._begun:
            if len(self._begun) >= _REMEMBERED_COLUMNS:
                self._begun.clear()
            self._begun[key] = torch.tensor(self._find_begun_columns(longer, left))
        return self._begun[key]

    def _find_begun_columns(self, longer: int, left: bytes) -> list[int]:
        every = _beginning_with(self._tokens, left)
        if len(every) == 1:  # what is left, which is an anchor
            return list(every)
        found: list[int] = []
        start, at = len(self._member.token_bytes(longer)), every.start
        for further in self._longer_than(longer).tolist():  # sorted by bytes, and so are their anchors
            reached = _beginning_with(self._tokens, left + self._member.token_bytes(further)[start:])
            found += range(at, reached.start)
            at = max(at, reached.stop)
        return [*found, *range(at, every.stop)]

    def _longer_than(self, token_id: int) -> torch.Tensor:
        """Returns the ids of the member's tokens that begin with a given token, a part of those sorted by bytes."""
        if token_id not in self._longer:
            start = self._member.token_bytes(token_id)
            found = _beginning_with(self._sorted_tokens, start) if start else range(0)
            first = found.start + bool(found and self._sorted_tokens[found.start] == start)  # those that are longer
            self._longer[token_id] = self._sorted[first : found.stop]
        return self._longer[token_id]

    def _said(self, heard: Heard) -> tuple[int, ...] | None:
        """Returns the ids of the answer that overlap the member's last token; none if that token ends a prompt.

        Returns:
            None if the token begins in text after which no longer token counts.
        """
        value = self._member.token_bytes(heard.last)
        data, count = b"", 0
        while len(data) < len(value) or not is_text(data):
            if count == len(heard.said):
                if heard.dummy and value == b" " + data:
                    return tuple(heard.said)
                return tuple(heard.said) if heard.cut and value.endswith(data) else None
            count += 1
            data = self._main.token_bytes(heard.said[-count]) + data
        return tuple(heard.said[len(heard.said) - count :]) if data.endswith(value) else None

    def _what_is_left(self, longer: int, last: int, said: tuple[int, ...]) -> _Left | None:
        """Returns how main would go on towards a longer token; None if it would have begun it otherwise."""
        left = self._member.token_bytes(longer)[len(self._member.token_bytes(last)) :]
        after = self._main.after(said, left)
        if after is None and left[-1:].isspace() and self._member.after((longer,), WORD) is not None:
            # Blanks before a word, which the member says alike, and main may not.
            after = self._main.after(said, left + WORD)
        if after is None:
            return None
        starts = (after[:n] for n in range(min(len(after), len(left)), 0, -1))
        column = next((self._columns[s] for s in starts if s in self._columns), self._places.unknown)
        return _Left(column, left if after.startswith(left) and left in self._columns else None)

    def _without_ruled_out(self, mass: torch.Tensor, sequences: Sequence[Heard]) -> torch.Tensor:
        """Removes the mass of tokens that main, by the tokens that it has just said, has ruled out."""
        places = (mass[:, : self._places.anchors] > _NOTICEABLE).nonzero().tolist()
        out = [(n, c) for n, c in places if not self._main.can_continue(sequences[n].said, self._tokens[c])]
        if out:
            mass[tuple(torch.tensor(out, device=mass.device).T)] = 0.0
        return mass


def _beginning_with(tokens: Sequence[bytes], start: bytes) -> range:
    """Returns the places of the tokens that begin with some bytes, at least one, among tokens sorted by bytes."""
    first = bisect_left(tokens, start)
    stem = start.rstrip(b"\xff")
    if not stem:
        return range(first, len(tokens))
    return range(first, bisect_left(tokens, stem[:-1] + bytes([stem[-1] + 1]), first))


def healers_of(
    members: Sequence[Member], cuts: Sequence[Segmentation], main: int, anchors: Anchors
) -> list[Healer | None]:
    """Returns a healer for each member except main; `cuts` is how each member cuts a text."""
    return [
        None if number == main else Healer(cuts[number], cuts[main], anchors, member.vocabulary_size)
        for number, member in enumerate(members)
    ]
