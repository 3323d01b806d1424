"""Anchors: the tokens that all members share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepen_core.errors import NoCommonTokensError
from deepen_core.fusion.anchors.columns import Columns, TokenColumns
from deepen_core.members.base import Member
from deepen_core.tokenization.vocabulary import Vocabulary


def common_tokens(vocabularies: Sequence[Vocabulary]) -> list[bytes]:
    """Returns the byte strings that are one token in every vocabulary, sorted, so the same in every process.

    Args:
        vocabularies: One per member; special tokens are never in the result.
    """
    shared = set(vocabularies[0].tokens)
    for vocabulary in vocabularies[1:]:
        shared &= vocabulary.tokens.keys()
    return sorted(shared)


def check_common_tokens(vocabularies: Sequence[Vocabulary], names: Sequence[str]) -> None:
    """Checks that these members share at least one token.

    Raises:
        NoCommonTokensError: If they do not.
    """
    first, *others = (v.tokens.keys() for v in vocabularies)
    if not any(all(token in tokens for tokens in others) for token in first):
        raise _nothing_shared(vocabularies, names)


def _nothing_shared(vocabularies: Sequence[Vocabulary], names: Sequence[str]) -> NoCommonTokensError:
    counts = ", ".join(f"{n} has {len(v.tokens)} tokens" for n, v in zip(names, vocabularies, strict=True))
    return NoCommonTokensError(
        f"The members share no token ({counts}), so nothing can be fused: choose models whose vocabularies overlap, "
        "for instance two that were trained on the same language."
    )


@dataclass(frozen=True)
class Anchors:
    """The shared tokens with their ids in each member's vocabulary.

    The stop class is one more anchor after these; it has no embedding, see `RelativeSpace`.
    """

    tokens: list[bytes]
    ids: list[torch.Tensor]
    """One int64 tensor [anchors] per member, in the order of `tokens`."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def columns(self) -> Columns:
        """Indices of the columns."""
        return Columns(len(self.tokens))

    def fixed_columns(self, vocabulary: Vocabulary, size: int, *, by_prefix: bool) -> torch.Tensor:
        """Returns the columns that are assigned without embeddings.

        A token that ends a text belongs to the stop column; one without bytes to the unknown column, since no other
        member has it. With `by_prefix`, a token that is not an anchor belongs to the longest anchor that its bytes
        begin with: a model that lacks " tomorrow" contributes to " tom".

        Args:
            vocabulary: The member's vocabulary.
            size: Length of its embedding matrix.
            by_prefix: Whether tokens that are not shared are assigned by their beginning rather than their embedding.

        Returns:
            int32 [size]; -1 where the row is computed from embeddings.
        """
        column_of = {token: column for column, token in enumerate(self.tokens)}
        columns = [self.columns.unknown] * size
        for token_id in range(min(size, vocabulary.size)):
            token = vocabulary.token_bytes(token_id)
            if token is None:
                continue
            columns[token_id] = -1
            if by_prefix and token not in column_of:
                for end in range(len(token) - 1, 0, -1):
                    if (column := column_of.get(token[:end])) is not None:
                        columns[token_id] = column
                        break
        for token_id in vocabulary.stop_ids:
            if token_id < size:
                columns[token_id] = self.columns.stop
        return torch.tensor(columns, dtype=torch.int32)

    def columns_of(self, number: int, member: Member) -> TokenColumns:
        """Returns the column of each token of a member, on its device, assigned without embeddings.

        Args:
            number: The member's number.
            member: The member.
        """
        fixed = self.fixed_columns(member.tokenizer.vocabulary, member.vocabulary_size, by_prefix=True)
        return TokenColumns(self.columns, self.ids[number].to(member.device), fixed.to(member.device))

    @classmethod
    def of_members(cls, members: Sequence[Member]) -> Anchors:
        """Finds the anchors of loaded members.

        Raises:
            NoCommonTokensError: If their vocabularies have no token in common.
        """
        vocabularies = [m.tokenizer.vocabulary for m in members]
        return cls.shared_by(vocabularies, [m.name for m in members], [m.vocabulary_size for m in members])

    @classmethod
    def shared_by(
        cls, vocabularies: Sequence[Vocabulary], names: Sequence[str], sizes: Sequence[int] | None = None
    ) -> Anchors:
        """Finds the anchors of these members.

        Args:
            vocabularies: One per member.
            names: The members' names, for the error message.
            sizes: Length of each embedding matrix; a token beyond it cannot be an anchor.

        Raises:
            NoCommonTokensError: If the vocabularies have no token in common.
        """
        limits = [v.size for v in vocabularies] if sizes is None else sizes
        pairs = list(zip(vocabularies, limits, strict=True))
        tokens = common_tokens(vocabularies)
        if any(limit < v.size for v, limit in pairs):
            tokens = [t for t in tokens if all(v.tokens[t] < limit for v, limit in pairs)]
        if not tokens:
            raise _nothing_shared(vocabularies, names)
        ids = [torch.tensor([v.tokens[t] for t in tokens]) for v in vocabularies]
        return cls(tokens, ids)
