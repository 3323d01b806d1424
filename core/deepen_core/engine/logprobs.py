"""Reports a chosen token's log-probability, fused and under each member alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.members.base import Member
from deepen_core.results import MemberTokenLogprob, TokenLogprob
from deepen_core.tokenization.vocabulary import Vocabulary


class TokenReporter:
    """Reports chosen tokens.

    Args:
        members: The members in their order.
        main: The number of the member whose vocabulary is used.
    """

    def __init__(self, members: Sequence[Member], main: int) -> None:
        self._names = [m.name for m in members]
        self._vocabularies = [m.tokenizer.vocabulary for m in members]
        self._main = main

    def report(
        self, token_id: int, alternatives: int, fused: torch.Tensor, own: Sequence[tuple[int, torch.Tensor | None]]
    ) -> TokenLogprob:
        """Reports one token.

        Args:
            token_id: Main's id.
            alternatives: Number of most probable tokens to report.
            fused: Fused log-probabilities [main's vocabulary].
            own: For each member that counts, its number, and its log-probabilities [vocabulary] if it took part.
        """
        spoken = self._vocabularies[self._main]
        value = spoken.token_bytes(token_id) or b""
        members = []
        for number, logprobs in own:
            name, vocabulary = self._names[number], self._vocabularies[number]
            own_id = token_id if number == self._main else vocabulary.id_of(value)
            logprob = None if own_id is None or logprobs is None else float(logprobs[own_id])
            top = () if logprobs is None else _top(logprobs, alternatives, vocabulary)
            members.append(MemberTokenLogprob(name, own_id, logprob, top))
        top = _top(fused, alternatives, spoken)
        return TokenLogprob(token_id, value, float(fused[token_id]), top, tuple(members))


def _top(logprobs: torch.Tensor, count: int, vocabulary: Vocabulary) -> tuple[tuple[int, bytes, float], ...]:
    best = logprobs.topk(min(count, len(logprobs)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((token_id, vocabulary.token_bytes(token_id) or b"", logprob) for token_id, logprob in pairs)
