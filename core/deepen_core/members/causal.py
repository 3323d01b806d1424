"""A decoder-only model from `transformers`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from deepen_core.members.base import MemberRow
from deepen_core.members.tokenizer import MemberTokenizer


class OwnCache:
    """The key/value cache of one row."""

    def __init__(self) -> None:
        self.held = DynamicCache()

    def fit(self, length: int) -> DynamicCache:
        """The cache, shortened to a length."""
        surplus = self.held.get_seq_length() - length
        if surplus > 0:
            self.held.crop(-surplus)
        return self.held

    def free(self) -> None:
        """See `RowCache.free`."""
        self.held = DynamicCache()


class CausalMember:
    """A loaded `AutoModelForCausalLM` with its tokenizer.

    Each row has a key/value cache of its own. It keeps every position, also for models with sliding windows, whose
    masks see to the window, so that it can always be shortened. A model whose state cannot be shortened (a state-space
    model), or which does not fill the cache it is given, runs the whole text of the row each time: slow, but right.

    Args:
        name: How it is called in reports.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        context_window: In its own tokens.
    """

    def __init__(self, name: str, model: Any, tokenizer: MemberTokenizer, context_window: int) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.context_window = context_window
        self._keeps_cache: bool | None = False if getattr(model, "_is_stateful", False) else None
        accepts = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 2} if "logits_to_keep" in accepts else {}

    @property
    def device(self) -> torch.device:
        """Where its logits are."""
        device = self.model.device
        assert isinstance(device, torch.device)
        return device

    @property
    def embeddings(self) -> torch.Tensor:
        """Input embeddings [vocabulary, width]."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def next_logits(self, rows: Sequence[MemberRow]) -> torch.Tensor:
        """See `Member.next_logits`."""
        return torch.stack([self._run(row) for row in rows])

    def prefill(self, row: MemberRow, limit: int) -> int:
        """See `Member.prefill`."""
        if row.pending <= 2 or not self._can_cache(row):
            return 0
        return len(self._forward(row, row.take_pending(limit))[0])

    def _run(self, row: MemberRow) -> torch.Tensor:
        if not self._can_cache(row):
            row.cached = 0
        pending, output = self._forward(row, row.take_pending())
        if row.started:
            row.tokens_run += len(pending)
        row.started = True
        return self._logits(row, output)

    def _can_cache(self, row: MemberRow) -> bool:
        if self._keeps_cache is None:
            self._keeps_cache = self._tries_cache(row.ids)
        return self._keeps_cache

    def _forward(self, row: MemberRow, pending: list[int]) -> tuple[list[int], Any]:
        ids = torch.tensor([pending], device=self.device)
        if not self._keeps_cache:
            return pending, self.model(ids, use_cache=False, **self._last_only)
        if not isinstance(row.cache, OwnCache):
            row.cache = OwnCache()
        cache = row.cache.fit(row.cached - len(pending))
        return pending, self.model(ids, past_key_values=cache, use_cache=True, **self._last_only)

    def _tries_cache(self, ids: Sequence[int]) -> bool:
        """Whether the model fills a cache that can be shortened; tried once, on the first ids it is given."""
        cache = DynamicCache()
        probe = torch.tensor([list(ids)[:2]], device=self.device)
        try:
            self.model(probe, past_key_values=cache, use_cache=True, **self._last_only)
            return bool(cache.get_seq_length() == probe.shape[1])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # models refuse it in their own ways
            return False

    def _logits(self, row: MemberRow, output: Any) -> torch.Tensor:
        logits: torch.Tensor = output.logits[0, -2:, : len(self.embeddings)].float()  # [1 or 2, vocabulary]
        row.keep_logits(logits)
        return logits[-1]

    def token_logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """See `Member.token_logprobs`."""
        batch = torch.tensor([list(ids)], device=self.device)
        logits = self.model(batch, use_cache=False).logits[0, start - 1 : -1].float()  # [tokens, vocabulary]
        chosen = torch.log_softmax(logits, dim=-1).gather(-1, batch[0, start:, None])[:, 0]
        return [float(x) for x in chosen]
