"""A member's distribution in main's tokens, by bytes: each token of the member becomes the tokens that main would say.

Shapes: the member's distributions are [sequences, its vocabulary], main's and the result [sequences, main's].

1. A shared token goes to itself, and any other one to the first token of main's encoding of its text.
2. Where main has tokens that begin with it and are longer, and the member has none between, the text may go on to one
   of them: the member says " satis" and then "faction", where main says " satisfaction". Such a token is open. Main's
   own probabilities decide between these longer tokens and the one of step 1.
3. Main often cuts blanks otherwise before a word. If the member does not, the first token of main's encoding before a
   word counts as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.fusion.anchors.segmentation import WORD, Segmentation

_TINY = 1e-30


class MainTokens:
    """Main's tokens, asked which of them some bytes begin with.

    Args:
        cuts: How main cuts a text.
        size: Number of main's logits.
    """

    def __init__(self, cuts: Segmentation, size: int) -> None:
        self.vocabulary = cuts.vocabulary
        self.size = size
        self._cuts = cuts

    def first_of(self, values: Sequence[bytes]) -> list[tuple[int, int]]:
        """Returns the token that each of some values is, or else begins with, by itself and before a word.

        Args:
            values: Each at least one byte.

        Returns:
            Two ids for each, which differ only for values that end in blanks; -1 if main has no such token.
        """
        tokens = self.vocabulary.tokens
        others = [value for value in values if value not in tokens]
        begun = dict(zip(others, self._begun(others), strict=True))
        alone = [begun[value] if value in begun else self._known(tokens[value]) for value in values]
        blanks = [place for place, value in enumerate(values) if value[-1:].isspace()]
        before_word = self._begun([values[place] + WORD for place in blanks])
        both = [(token_id, token_id) for token_id in alone]
        for place, token_id in zip(blanks, before_word, strict=True):
            if len(self.vocabulary.token_bytes(token_id) or b"") <= len(values[place]):
                both[place] = (alone[place], token_id)
        return both

    def _begun(self, values: Sequence[bytes]) -> list[int]:
        found = []
        for value, first in zip(values, self._cuts.firsts(values), strict=True):
            begun = self.vocabulary.longest_beginning(value) if first is None else first
            found.append(-1 if begun is None else self._known(begun))
        return found

    def _known(self, token_id: int) -> int:
        return token_id if token_id < self.size else -1


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
        begun = dict(zip(values, main.first_of(list(values.values())), strict=True))
        mine = main.vocabulary
        owners = {
            i: owner
            for i in range(main.size)
            if (value := mine.token_bytes(i)) and value not in vocabulary.tokens
            if (owner := vocabulary.longest_beginning(value)) is not None and owner < size
        }
        blank = {
            i
            for i, (alone, before_word) in begun.items()
            if alone != before_word and cuts.after((i,), WORD) is not None
        }
        is_open = sorted(i for i in {*owners.values(), *blank} if begun[i][0] >= 0)

        def ids(found: Sequence[int]) -> torch.Tensor:
            return torch.tensor(found, dtype=torch.long, device=device)

        none = main.size  # of main's ids; `size` of the member's
        self._size = size
        self._goes_to = ids([begun[i][0] if i in begun and begun[i][0] >= 0 else none for i in range(size)])
        self._owners = ids([owners.get(i, size) for i in range(main.size)])
        self._open = ids(is_open)
        self._shared = torch.tensor(
            [mine.token_bytes(begun[i][0]) == values[i] for i in is_open], dtype=torch.bool, device=device
        )
        self._before_word = ids([begun[i][1] if i in blank and begun[i][1] >= 0 else none for i in is_open])

    @property
    def bytes_held(self) -> int:
        """Memory that it takes."""
        held = (self._goes_to, self._owners, self._open, self._shared, self._before_word)
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
        other = padded[:, self._before_word]
        total = longer + stays + other
        scale = torch.where(total > _TINY, mass / total.clamp_min(_TINY), 0.0)
        leaves = torch.where(total > _TINY, stays * scale - mass, 0.0)
        found.index_add_(1, to, leaves)
        found.index_add_(1, self._before_word, other * scale)
        scales = p.new_zeros(len(p), self._size + 1)
        scales[:, self._open] = scale
        return torch.addcmul(found[:, :-1], own, scales[:, self._owners]).clamp_min_(0.0)
