"""What remains of a member's longer tokens, in main's tokens."""

from __future__ import annotations

import torch

from deepen_core.fusion.anchors.segmentation import WORD, Segmentation, is_text
from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.fusion.bytes.byte_order import ByteOrder
from deepen_core.fusion.bytes.overhang import Overhang, Rest

_NOTICEABLE = 0.01  # only tokens of at least this probability are taken from a member that main has ruled out


class RestSpelling:
    """Spells what remains of longer tokens, as far as main has not ruled them out by the tokens that it has said.

    Args:
        main: How main cuts a text.
        order: Main's tokens by their bytes.
        device: Of main's logits.
    """

    def __init__(self, main: Segmentation, order: ByteOrder, device: torch.device) -> None:
        self._main = main
        self._order = order
        self._ids = torch.tensor(order.ids, device=device)

    def add(self, overhang: Overhang, heard: Heard, own: torch.Tensor, told: torch.Tensor) -> None:
        """Adds what remains of longer tokens to what a member says after its last token, in place.

        Of what is not known, it says what main says.

        Args:
            overhang: How the text may go on.
            heard: The end of the member's text.
            own: Main's probabilities [vocabulary].
            told: The member's distribution after its last token, in main's tokens [vocabulary].
        """
        kept, firsts = overhang.finished + overhang.unknown, list[tuple[Rest, bytes]]()
        for rest in overhang.rests:
            said = self._said(heard, rest.there)
            first = None if said is None else self._first_of(said, rest)
            if first is not None:
                firsts.append((rest, first))
                kept += rest.share
        if kept <= 0.0:  # main has ruled out all that the member might say
            told.copy_(own)
            return
        told.mul_(overhang.finished / kept).add_(own, alpha=overhang.unknown / kept)
        for rest, first in firsts:
            self._spread(rest.value, rest.share / kept, first, own, told)

    def _first_of(self, said: tuple[int, ...], rest: Rest) -> bytes | None:
        """Returns the token by which main goes on with a rest; None if it would have begun otherwise."""
        first = self._main.after(said, rest.value)
        if first is None and rest.before_word:  # main may cut blanks otherwise there
            first = self._main.after(said, rest.value + WORD)
        return first

    def _spread(self, rest: bytes, mass: float, first: bytes, own: torch.Tensor, told: torch.Tensor) -> None:
        """Adds a rest to the token that it begins with, and to longer ones that it may begin."""
        vocabulary = self._main.vocabulary
        place = vocabulary.longest_beginning(first[: len(rest)])
        if place is None:
            return
        longer = self._longer_than(rest) if len(first) >= len(rest) else self._ids[:0]
        among = own[longer]
        total = float(own[place]) + float(among.sum())
        if total <= 0.0:
            told[place] += mass
            return
        told[place] += mass * float(own[place]) / total
        if len(longer):
            told.index_add_(0, longer, among * (mass / total))

    def _longer_than(self, rest: bytes) -> torch.Tensor:
        first, stop = self._order.longer_than(rest)
        return self._ids[first:stop]

    def _said(self, heard: Heard, length: int) -> tuple[int, ...] | None:
        """Returns the ids of the answer that overlap the last bytes of a text; fewer if these begin in a prompt.

        Returns:
            None if the bytes begin in text after which no longer token counts.
        """
        data, count = b"", 0
        while len(data) < length or not is_text(data):
            if count == len(heard.said):
                return tuple(heard.said) if heard.cut else None
            count += 1
            data = self._main.token_bytes(heard.said[-count]) + data
        return tuple(heard.said[len(heard.said) - count :])

    def without_ruled_out(self, heard: Heard, own: torch.Tensor, told: torch.Tensor) -> None:
        """Takes probability beyond main's own from tokens that main has ruled out by those that it has just said."""
        for token_id in ((told > _NOTICEABLE) & (told > own)).nonzero()[:, 0].tolist():
            value = self._main.token_bytes(token_id)
            if value and not self._main.can_continue(heard.said, value):
                told[token_id] = own[token_id]
