"""What a member would have said instead of its last tokens: longer ones, of which the text so far is the beginning.

The text ends in " app", and the member's ids with the token " app". Had the text gone on with "le", its tokenizer would
have said " apple" instead. So what it says of the bytes that follow is the mixture of two things: its distribution
after " app", and the mass that it gave before to longer tokens, which is the mass of what remains of them. Bayes' rule
weighs them by how probable it found each way to spell the text so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepen_core.fusion.bytes.byte_order import ByteOrder

_NEGLIGIBLE = 1e-4  # longer tokens with a smaller share of the probability are left out
_MOST = 64  # and so are all but the most probable ones
_REMEMBERED = 2**14


@dataclass(frozen=True)
class Overhang:
    """The ways in which a text may go on in a member's tokens; all shares sum to one.

    Attributes:
        finished: Share of what the member says after its last token.
        rests: What remains of longer tokens, with the share of each and the number of bytes of it that are there.
    """

    finished: float = 1.0
    rests: tuple[tuple[bytes, float, int], ...] = ()


class OverhangFinder:
    """Finds what one member would have said instead.

    Args:
        order: Its tokens by their bytes.
        device: Of its logits.
    """

    def __init__(self, order: ByteOrder, device: torch.device) -> None:
        self._order = order
        self._ids = torch.tensor(order.ids, device=device)
        self._value_of = dict(zip(order.ids, order.values, strict=True))
        self._longer: dict[bytes, tuple[int, int]] = {}

    def find(self, trail: Sequence[tuple[int, torch.Tensor]]) -> Overhang:
        """Returns how the text may go on.

        Args:
            trail: The last ids, the last one first, each with the logits [vocabulary] that it was chosen from.
        """
        # 1) The places from which a longer token would reach over the end of the text.
        ending, reaches = b"", list[tuple[int, int, int]]()
        for token_id, _ in trail:
            value = self._value_of.get(token_id)
            if value is None:
                break
            ending = value + ending
            first, stop = self._longer_than(ending)
            reaches.append((first, stop, len(ending)))
        while reaches and reaches[-1][0] == reaches[-1][1]:
            reaches.pop()
        # 2) Their weights, from the farthest place on, and the mass of the longer tokens there.
        weight, rests = 1.0, list[tuple[bytes, float, int]]()
        for number in range(len(reaches) - 1, -1, -1):
            first, stop, length = reaches[number]
            token_id, logits = trail[number]
            scale = torch.logsumexp(logits.float(), dim=-1)
            if first < stop:
                mass = weight * (logits[self._ids[first:stop]].float() - scale).exp()
                found = mass.topk(min(_MOST, stop - first))
                for value, place in zip(found.values.tolist(), found.indices.tolist(), strict=True):
                    rests.append((self._order.values[first + place][length:], value, length))
            weight *= float((logits[token_id].float() - scale).exp())
        # 3) Shares.
        total = weight + sum(mass for _, mass, _ in rests)
        if total <= 0.0:
            return Overhang()
        rests = [rest for rest in rests if rest[1] > _NEGLIGIBLE * total]
        total = weight + sum(mass for _, mass, _ in rests)
        return Overhang(weight / total, tuple((rest, mass / total, length) for rest, mass, length in rests))

    def _longer_than(self, ending: bytes) -> tuple[int, int]:
        if ending not in self._longer:
            if len(self._longer) >= _REMEMBERED:
                self._longer.clear()
            self._longer[ending] = self._order.longer_than(ending)
        return self._longer[ending]
