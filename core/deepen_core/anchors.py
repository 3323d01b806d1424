"""Tokens that all members share: the axes of the relative space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepen_core.errors import NoCommonTokensError
from deepen_core.vocabulary import Vocabulary


def common_tokens(vocabularies: Sequence[Vocabulary]) -> list[bytes]:
    """Byte strings that are one token in every vocabulary, sorted, so equal in every process.

    Args:
        vocabularies: One per member; special tokens are never among the result.
    """
    shared = set(vocabularies[0].tokens)
    for vocabulary in vocabularies[1:]:
        shared &= vocabulary.tokens.keys()
    return sorted(shared)


@dataclass(frozen=True)
class Anchors:
    """The shared tokens with their ids in each member's vocabulary.

    The stop class is one more anchor behind these; it has no embedding, see `RelativeSpace`.
    """

    tokens: list[bytes]
    ids: list[torch.Tensor]
    """One int64 tensor [anchors] per member, in the order of `tokens`."""

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def shared_by(cls, vocabularies: Sequence[Vocabulary], names: Sequence[str]) -> Anchors:
        """Finds the anchors of these members.

        Raises:
            NoCommonTokensError: If the vocabularies have no token in common.
        """
        tokens = common_tokens(vocabularies)
        if not tokens:
            sizes = ", ".join(f"{n} has {len(v.tokens)} tokens" for n, v in zip(names, vocabularies, strict=True))
            raise NoCommonTokensError(
                f"The members share no token ({sizes}), so nothing can be fused: choose models whose vocabularies "
                "overlap, for instance two that were trained on the same language."
            )
        ids = [torch.tensor([v.tokens[t] for t in tokens]) for v in vocabularies]
        return cls(tokens, ids)
