r"""What a member would have said instead of its last tokens, had it known how the text goes on.

The text ends in " app", and the member's ids with the token " app". Had the text gone on with "le", its tokenizer would
have said " apple" instead. So what it says of the bytes that follow is a mixture of three things, which Bayes' rule
weighs by how probable it found each way to spell the text so far:

1. its distribution after the text as it is;
2. the mass that it gave before to longer tokens, which is the mass of what remains of them;
3. what it would say after other tokens that spell a part of the end: before a word it cuts "\n" and four blanks as
   a newline with three blanks, and a blank with the word. That is not known, since those tokens were not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from deepen_core.fusion.anchors.segmentation import WORD, Segmentation, is_text
from deepen_core.fusion.bytes.byte_order import ByteOrder

_NEGLIGIBLE = 1e-4  # longer tokens with a smaller share of the probability are left out
_MOST = 64  # and so are all but the most probable ones
_NOTICEABLE = 0.005  # least share of another token that spells a part of the end
_PROBES = (b"", b"a", b"e", b"s", b"x", b"1", b" ", b"\n", b".")
"""What may follow a text; a way to cut it is possible if the tokenizer cuts it so before one of them."""
_REMEMBERED = 2**14


@dataclass(frozen=True)
class Rest:
    """What remains of a longer token.

    Attributes:
        value: The bytes that are not there yet.
        share: Its probability.
        there: Number of bytes of the token that are there.
        before_word: Whether the member would say this token before a word.
    """

    value: bytes
    share: float
    there: int
    before_word: bool


@dataclass(frozen=True)
class Overhang:
    """The ways in which a text may go on in a member's tokens; all shares sum to one.

    Attributes:
        finished: Share of what the member says after its last token.
        rests: What remains of longer tokens.
        unknown: Share of what it would say after tokens that were not run.
    """

    finished: float = 1.0
    rests: tuple[Rest, ...] = ()
    unknown: float = 0.0


class OverhangFinder:
    """Finds what one member would have said instead.

    Args:
        order: Its tokens by their bytes.
        cuts: How it cuts a text.
        device: Of its logits.
    """

    def __init__(self, order: ByteOrder, cuts: Segmentation, device: torch.device) -> None:
        self._order = order
        self._cuts = cuts
        self._ids = torch.tensor(order.ids, device=device)
        self._longer: dict[bytes, tuple[int, int]] = {}
        self._possible: dict[tuple[int, bytes], bool] = {}

    def find(self, trail: Sequence[tuple[int, torch.Tensor]], *, held: bool = False) -> Overhang:
        """Returns how the text may go on.

        Args:
            trail: The last ids, the last one first, each with the logits [vocabulary] that it was chosen from.
            held: Whether the text has one more blank, with which the next token begins.
        """
        # 1) The end of the text from each place on.
        endings, behind = list[bytes](), b" " if held else b""
        for token_id, _ in trail:
            value = self._cuts.token_bytes(token_id)
            if not value:
                break
            behind = value + behind
            endings.append(behind)
        # 2) From the farthest place on: how probable the ids up to there are, longer tokens, and other ones.
        weight, unknown, rests = 1.0, list[tuple[int, bytes, float]](), list[tuple[int, float, int]]()
        for number in range(len(endings) - 1, -1, -1):
            (token_id, logits), ending = trail[number], endings[number]
            scale = torch.logsumexp(logits.float(), dim=-1)
            first, stop = self._longer_than(ending)
            if first < stop:
                found = (logits[self._ids[first:stop]].float() - scale).exp().topk(min(_MOST, stop - first))
                for mass, place in zip(found.values.tolist(), found.indices.tolist(), strict=True):
                    rests.append((first + place, weight * mass, len(ending)))
            others = [i for i in self._shorter_than(ending, whole=held) if i != token_id]
            for other, mass in zip(others, (logits[others].float() - scale).exp().tolist(), strict=True):
                unknown.append((other, ending, weight * mass))
            weight *= float((logits[token_id].float() - scale).exp())
        # 3) Shares.
        total = weight + sum(mass for _, mass, _ in rests)
        if total <= 0.0:
            return Overhang()
        rests = [rest for rest in rests if rest[1] > _NEGLIGIBLE * total]
        noticed = [(i, end, mass) for i, end, mass in unknown if mass > _NOTICEABLE * total]
        missing = sum(mass for token_id, ending, mass in noticed if self._is_possible(token_id, ending))
        total = weight + sum(mass for _, mass, _ in rests) + missing
        shares = tuple(self._rest(place, mass / total, length) for place, mass, length in rests)
        return Overhang(weight / total, shares, missing / total)

    def _rest(self, place: int, share: float, there: int) -> Rest:
        value = self._order.values[place]
        blank = value[-1:].isspace() and self._cuts.after((self._order.ids[place],), WORD) is not None
        return Rest(value[there:], share, there, blank)

    def _longer_than(self, ending: bytes) -> tuple[int, int]:
        if ending not in self._longer:
            if len(self._longer) >= _REMEMBERED:
                self._longer.clear()
            self._longer[ending] = self._order.longer_than(ending)
        return self._longer[ending]

    def _shorter_than(self, ending: bytes, *, whole: bool) -> Iterator[int]:
        """Yields the tokens that are a beginning of some bytes; that of all of them only if `whole`."""
        tokens = self._cuts.vocabulary.tokens
        size = len(self._ids)
        for length in range(1, len(ending) + whole):
            token_id = tokens.get(ending[:length])
            if token_id is not None and token_id < size:
                yield token_id

    def _is_possible(self, token_id: int, ending: bytes) -> bool:
        """Whether the tokenizer may begin the end of a text with a token, by what follows."""
        key = (token_id, ending)
        if key not in self._possible:
            if len(self._possible) >= _REMEMBERED:
                self._possible.clear()
            rest = ending[len(self._cuts.token_bytes(token_id)) :]
            self._possible[key] = is_text(ending) and any(
                self._cuts.after((token_id,), rest + probe) is not None for probe in _PROBES
            )
        return self._possible[key]
