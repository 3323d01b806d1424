"""Chooses a token from fused logits the way `transformers` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from deepen_core.config import SamplingParams
from deepen_core.sampling.largest import places_of_largest

_TELLING = 80.0  # nats below the best token; beyond 87, float32 cannot represent probabilities exactly


class Sampler:
    """Chooses the tokens of one request, with a random generator of its own.

    Args:
        params: The request's options.
        forbidden: Ids that are never chosen.
    """

    def __init__(self, params: SamplingParams, forbidden: Sequence[int] = ()) -> None:
        self._greedy = params.temperature == 0.0
        self._forbidden = torch.tensor(forbidden, dtype=torch.long)
        self._frequency, self._presence = params.frequency_penalty, params.presence_penalty
        self._window = params.penalty_window
        bias = params.logit_bias or {}
        self._biased = torch.tensor(list(bias), dtype=torch.long)
        self._bias = torch.tensor(list(bias.values()), dtype=torch.float)
        self._generator: torch.Generator | None = None
        self._seed = params.seed
        self._warpers: list[Callable[[Any, torch.Tensor], torch.Tensor]] = []
        self._penalty: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
        if params.repetition_penalty != 1.0:
            self._penalty = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
        if not self._greedy:
            if params.temperature != 1.0:
                self._warpers.append(TemperatureLogitsWarper(params.temperature))
            if params.top_k is not None:
                self._warpers.append(TopKLogitsWarper(params.top_k))
            if params.top_p is not None and params.top_p < 1.0:
                self._warpers.append(TopPLogitsWarper(params.top_p))
            if params.min_p is not None:
                self._warpers.append(MinPLogitsWarper(params.min_p))

    @property
    def needs_history(self) -> bool:
        """Whether `choose` uses the ids so far, and the scale of the logits."""
        return self._penalty is not None

    def choose(self, logits: torch.Tensor, history: Sequence[int], answer: Sequence[int] = ()) -> int:
        """Chooses one token.

        Args:
            logits: Fused logits [vocabulary]; if `needs_history`, shifted like main's own, since a repetition penalty
                depends on that.
            history: Main's ids so far, prompt included; used only if `needs_history`.
            answer: Those of the answer.
        """
        scores = logits[None]  # [1, vocabulary]
        if len(self._biased):
            self._biased, self._bias = self._biased.to(scores.device), self._bias.to(scores)
            scores = scores.index_add(1, self._biased, self._bias[None])
        since = 0 if self._window is None else -self._window
        if self._penalty is not None:
            scores = self._penalty(torch.tensor([list(history[since:])], device=scores.device), scores)
        if (self._frequency or self._presence) and answer:
            ids, counts = torch.tensor(list(answer[since:]), device=scores.device).unique(return_counts=True)
            scores = scores.index_add(1, ids, -(self._frequency * counts + self._presence)[None].to(scores.dtype))
        if self._greedy:
            best = int(places_of_largest(scores))
            if not bool((self._forbidden == best).any()):
                return best  # without a copy of all scores
        if len(self._forbidden):
            self._forbidden = self._forbidden.to(scores.device)
            scores = scores.index_fill(1, self._forbidden, -torch.inf)
        if self._greedy:
            return int(places_of_largest(scores))
        for warper in self._warpers:
            scores = warper(None, scores)  # no warper uses the ids
        probs = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(probs, 1, generator=self._random(probs.device)))

    def _random(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device)
            if self._seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._seed)
        return self._generator


def masked(scores: torch.Tensor, own: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Returns the scores to choose by when only some tokens are allowed.

    Args:
        scores: Fused scores [vocabulary], log-probabilities up to a shift.
        own: Main's own logits [vocabulary].
        allowed: bool [vocabulary], not all false.

    Returns:
        The scores of the allowed tokens, and -infinity elsewhere. If fusion gives all allowed tokens zero probability,
        or one so small that it is only rounding, main's own logits are used instead. If these are -infinity too, all
        allowed tokens score alike.
    """
    kept = torch.where(allowed, scores, -torch.inf)
    if bool(kept.amax() > scores.amax() - _TELLING):
        return kept
    kept = torch.where(allowed, own, -torch.inf)
    if bool(kept.amax() > -torch.inf):
        return kept
    return torch.where(allowed, torch.zeros_like(scores), -torch.inf)
