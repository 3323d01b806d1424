"""What one member says of the bytes of main's tokens.

Shapes: distributions are [sequences, the member's tokens], masses [sequences, main's tokens]; both in byte order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.fusion.bytes.byte_order import ByteOrder
from deepen_core.fusion.bytes.overhang import Overhang, OverhangFinder
from deepen_core.fusion.bytes.spelling import Spelling
from deepen_core.tokenization.vocabulary import Vocabulary

_LEAST = 1e-12  # masses below it are rounding errors of sums


class MemberBytes:
    """Sums one member's mass by bytes.

    Args:
        vocabulary: The member's.
        size: Number of its logits.
        main: Main's tokens in byte order.
        device: Of the member's logits.
    """

    def __init__(self, vocabulary: Vocabulary, size: int, main: ByteOrder, device: torch.device) -> None:
        order = ByteOrder(vocabulary, size)
        self._main = main
        self._place_of = {value: place for place, value in enumerate(main.values)}
        self.spelling = Spelling(order, main, device)
        self._ids = torch.tensor(order.ids, device=device)
        self._ends = torch.tensor([order.beginning_with(value)[1] for value in order.values], device=device)
        self._stops = torch.tensor([i for i in sorted(vocabulary.stop_ids) if i < size], device=device)
        self._finder = OverhangFinder(order, device)

    def overhangs(self, heard: Sequence[Heard], sequences: int) -> list[Overhang]:
        """Returns how the text may go on in each sequence."""
        if not heard:
            return [Overhang()] * sequences
        return [self._finder.find(one.trail) for one in heard]

    def mass(self, logprobs: torch.Tensor, overhangs: Sequence[Overhang]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the probability that the text goes on with the bytes of each of main's tokens, or ends.

        Mass of what the member says in several tokens is left out here.

        Args:
            logprobs: The member's [sequences, vocabulary].
            overhangs: Of each sequence.

        Returns:
            float32 [sequences, main's tokens], and [sequences].
        """
        finished = torch.tensor([o.finished for o in overhangs], dtype=torch.float64, device=logprobs.device)
        p = logprobs[:, self._ids].double().exp_()
        sums = torch.nn.functional.pad(p.cumsum(-1), (1, 0))
        found = ((sums[:, self.spelling.high] - sums[:, self.spelling.low]) * finished[:, None]).float()
        for line, overhang in enumerate(overhangs):
            places, masses = self._beginnings(overhang)
            if places:
                found[line].index_add_(0, torch.tensor(places, device=found.device), found.new_tensor(masses))
        stop = logprobs[:, self._stops].double().exp().sum(-1) * finished
        return found.clamp_min_(_LEAST), stop.float()

    def _beginnings(self, overhang: Overhang) -> tuple[list[int], list[float]]:
        """Returns which of main's tokens the rests of longer tokens begin with, and the mass of each."""
        places, masses = list[int](), list[float]()
        for rest, mass in overhang.rests:
            for length in range(1, len(rest) + 1):
                place = self._place_of.get(rest[:length])
                if place is not None:
                    places.append(place)
                    masses.append(mass)
        return places, masses

    def ratio(
        self, logprobs: torch.Tensor, overhangs: Sequence[Overhang], own: torch.Tensor, own_stop: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns how much more probable than main the member finds the bytes of each of main's tokens, and the end.

        Bytes that the member may say in several tokens were not looked at that far. All that is known of them is a
        range: the mass of its longer tokens, and that together with all its tokens that are a beginning of these bytes.
        There the member goes on as main does from the longest token of main's that is a beginning, within the range.

        Args:
            logprobs: The member's [sequences, vocabulary].
            overhangs: Of each sequence.
            own: Main's mass by bytes, as `mass` returns it.
            own_stop: Main's mass of the end.
        """
        told, stop = self.mass(logprobs, overhangs)
        told, stop = told.to(own.device), stop.to(own.device)
        begun = self._begun(logprobs, overhangs)
        ratio = told / own
        for places, parents, pieces in self.spelling.levels:
            before = torch.where(parents >= 0, ratio[:, parents], 1.0)
            least = ratio[:, places]
            most = least + begun[:, pieces].to(own.device) / own[:, places]
            ratio[:, places] = before.clamp(least, most)
        for line, overhang in enumerate(overhangs):
            self._after_rests(overhang, ratio[line], own[line])
        return ratio, (stop.clamp_min(_LEAST) / own_stop.clamp_min(_LEAST))

    def _begun(self, logprobs: torch.Tensor, overhangs: Sequence[Overhang]) -> torch.Tensor:
        """Returns the mass of each of the member's tokens and of all that are a beginning of it."""
        finished = torch.tensor([o.finished for o in overhangs], dtype=torch.float64, device=logprobs.device)
        p = logprobs[:, self._ids].double().exp_()
        leaving = p.new_zeros(len(p), p.shape[1] + 1).index_add_(1, self._ends, p)
        return ((p - leaving[:, :-1]).cumsum_(-1) * finished[:, None]).float()

    def _after_rests(self, overhang: Overhang, ratio: torch.Tensor, own: torch.Tensor) -> None:
        """Widens the range for tokens that go on after what remains of a longer token."""
        for rest, mass in overhang.rests:
            first, stop = self._main.longer_than(rest)
            if first == stop:
                continue
            lengths = range(len(rest), 0, -1)
            place = next((self._place_of[rest[:n]] for n in lengths if rest[:n] in self._place_of), None)
            before = 1.0 if place is None else ratio[place]
            least = ratio[first:stop]
            ratio[first:stop] = torch.maximum(least, torch.minimum(least + mass / own[first:stop], before))
