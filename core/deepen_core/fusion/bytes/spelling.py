"""A member's distribution in main's tokens, by bytes: each token of the member becomes the tokens that main would say.

Shapes: the member's distributions are [sequences, its vocabulary], main's and the result [sequences, main's].

1. A shared token goes to itself, and any other one to the first token of main's encoding of its text.
2. Where main has tokens that begin with it and are longer, and the member has none between, the text may go on to one
   of them: the member says " satis" and then "faction", where main says " satisfaction". Such a token is open. Main's
   own probabilities decide between these longer tokens and the one of step 1.
3. Main often cuts blanks otherwise before a word. If the member does not, the first token of main's encoding before a
   word counts as well. So does that before a blank and a word: a member that leaves the last blank to the word says
   three blanks and " return", where main says four blanks and "return".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.fusion.anchors.main_tokens import MainTokens
from deepen_core.fusion.anchors.segmentation import Segmentation

_TINY = 1e-30


class Spelling:
    """How one member's tokens are spelled in main's. Made once; all of it is indices.

    Args:
        cuts: How the member cuts a text.
        size: Number of its logits.
        main: Main's tokens.
        device: Of main's logits.
    """

    def __init__(self, cuts: Segmentation, size: int, main: MainTokens, device: torch.device) -> None:
        vocabulary = cuts.vocabulary
        values = {i: value for i in range(size) if (value := vocabulary.token_bytes(i))}
        alone = dict(zip(values, main.first_of(list(values.values())), strict=True))
        mine = main.vocabulary
        owners = {
            i: owner
            for i in range(main.size)
            if (value := mine.token_bytes(i)) and value not in vocabulary.tokens
            if (owner := vocabulary.longest_beginning(value)) is not None and owner < size
        }
        before_words = main.before_words(cuts, values)
        blanks = {
            i: kept
            for i, found in before_words.items()
            if (kept := [to for to in found if to != alone[i] and owners.get(to) != i])
        }
        is_open = sorted(i for i in {*owners.values(), *blanks} if alone.get(i, -1) >= 0)

        def ids(found: Sequence[int]) -> torch.Tensor:
            return torch.tensor(found, dtype=torch.long, device=device)

        none = main.size  # of main's ids; `size` of the member's
        self._size = size
        self._goes_to = ids([to if (to := alone.get(i, -1)) >= 0 else none for i in range(size)])
        self._owners = ids([owners.get(i, size) for i in range(main.size)])
        self._open = ids(is_open)
        self._shared = torch.tensor(
            [mine.token_bytes(alone[i]) == values[i] for i in is_open], dtype=torch.bool, device=device
        )
        others = [blanks.get(i, ()) for i in is_open]
        self._others = [
            ids([found[place] if place < len(found) else none for found in others])
            for place in range(max(map(len, others), default=0))
        ]

    @property
    def bytes_held(self) -> int:
        """Memory that it takes."""
        held = (self._goes_to, self._owners, self._open, self._shared, *self._others)
        return sum(t.numel() * t.element_size() for t in held)

    def spelled(self, p: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Returns the member's mass by main's tokens; that of tokens that main cannot begin is left out.

        Args:
            p: The member's probabilities.
            own: Main's probabilities.
        """
        # 1) Every token goes to one of main's; one more column takes what goes nowhere.
        found = p.new_zeros(len(p), own.shape[1] + 1).index_add_(1, self._goes_to, p)
        if not len(self._open):
            return found[:, :-1]
        # 2) and 3) Open tokens, and what main gives to each way to go on.
        longer = p.new_zeros(len(p), self._size + 1).index_add_(1, self._owners, own)[:, self._open]
        mass, to = p[:, self._open], self._goes_to[self._open]
        # Where main's first token is only a beginning, the rest of it follows as often as the member says.
        follows = torch.where(self._shared, 1.0, mass / found[:, to].clamp_min(_TINY))
        stays = own[:, to] * follows
        padded = torch.nn.functional.pad(own, (0, 1))
        others = [padded[:, to_other] for to_other in self._others]
        total = torch.stack([longer, stays, *others]).sum(0)
        scale = torch.where(total > _TINY, mass / total.clamp_min(_TINY), 0.0)
        leaves = torch.where(total > _TINY, stays * scale - mass, 0.0)
        found.index_add_(1, to, leaves)
        for to_other, other in zip(self._others, others, strict=True):
            found.index_add_(1, to_other, other * scale)
        scales = p.new_zeros(len(p), self._size + 1)
        scales[:, self._open] = scale
        return torch.addcmul(found[:, :-1], own, scales[:, self._owners]).clamp_min_(0.0)
