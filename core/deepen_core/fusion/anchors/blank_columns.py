"""Blanks before a word, which a member may cut otherwise than main: what it says of them, in the columns of main's cut.

A member that leaves the last of four blanks to the word says three blanks and " return"; main says four blanks and
"return". Both tokens of blanks are in both vocabularies, so by columns the two would contradict one another at the
beginning of each line of a program. Main's own probabilities decide between the columns that the member's token may
stand for.
"""

from __future__ import annotations

import torch

from deepen_core.fusion.anchors.main_tokens import MainTokens
from deepen_core.fusion.anchors.segmentation import Segmentation
from deepen_core.fusion.anchors.shared_tokens import Anchors

_TINY = 1e-30


class BlankColumns:
    """The columns that one member's tokens of blanks may stand for.

    Args:
        member: How the member cuts a text.
        main: Main's tokens.
        anchors: The tokens that all members share.
        main_columns: The column of each of main's tokens, [main's vocabulary].
    """

    def __init__(self, member: Segmentation, main: MainTokens, anchors: Anchors, main_columns: torch.Tensor) -> None:
        tokens = member.vocabulary.tokens
        columns = {tokens[token]: column for column, token in enumerate(anchors.tokens) if token[-1:].isspace()}
        found = main.before_words(member, {i: anchors.tokens[column] for i, column in columns.items()})
        pairs = [(columns[i], int(main_columns[to])) for i, others in found.items() for to in others]
        pairs = sorted({(one, other) for one, other in pairs if other != one and other < len(anchors)})
        starts = sorted({one for one, _ in pairs})
        device = main_columns.device
        self._from = torch.tensor(starts, dtype=torch.long, device=device)
        self._line = torch.tensor([starts.index(one) for one, _ in pairs], dtype=torch.long, device=device)
        self._to = torch.tensor([other for _, other in pairs], dtype=torch.long, device=device)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return len(self._to) > 0

    def spread(self, mass: torch.Tensor, own: torch.Tensor) -> None:
        """Spreads what a member says of blanks over the columns that it may stand for, in place.

        Args:
            mass: The member's mass by column, float32 [sequences, columns].
            own: Main's, [sequences, at least the anchors' columns].
        """
        said, stays, others = mass[:, self._from], own[:, self._from], own[:, self._to]
        total = stays.index_add(1, self._line, others)  # [sequences, tokens of blanks]
        scale = torch.where(total > _TINY, said / total.clamp_min(_TINY), 0.0)
        mass[:, self._from] = torch.where(total > _TINY, stays * scale, said)
        mass.index_add_(1, self._to, others * scale[:, self._line])
