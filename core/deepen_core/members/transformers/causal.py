"""A decoder-only model from `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deepen_core.members.base import MemberRow, Work
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers.attention import pack_heads, unpack_heads
from deepen_core.members.transformers.capabilities import probe
from deepen_core.members.transformers.ragged import RaggedRunner
from deepen_core.members.transformers.sequential import AloneRunner
from deepen_core.results import ONE_AT_A_TIME


@dataclass(frozen=True)
class _Ways:
    """How rows are run.

    Attributes:
        near: Runs rows up to `steady` ids.
        far: Runs longer ones.
        steady: None if all rows are alike.
        batching: See `Member.batching`.
    """

    near: RaggedRunner | AloneRunner
    far: AloneRunner
    steady: int | None
    batching: str


class CausalMember:
    """A loaded `AutoModelForCausalLM` with its tokenizer.

    Rows are run together, in a ragged cache, where the model can do that. It is tried by `find_ways`, or else when the
    member is first used; a model that cannot runs its rows one at a time, and one without a cache that can be shortened
    (a state-space model) the whole text of each: slow, but right. So does a text behind the length from which on a
    model with rotary positions of that kind stretches them all.

    Args:
        name: How it is called in reports.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        context_window: In its own tokens.

    Attributes:
        work: What it has done.
    """

    def __init__(self, name: str, model: Any, tokenizer: MemberTokenizer, context_window: int) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.context_window = context_window
        self.work = Work()
        self._found: _Ways | None = None

    @property
    def device(self) -> torch.device:
        """Where its logits are."""
        device = self.model.device
        assert isinstance(device, torch.device)
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype = self.model.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def embeddings(self) -> torch.Tensor:
        """Input embeddings [vocabulary, width]."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def batching(self) -> str:
        """See `Member.batching`."""
        return self._ways.batching

    def find_ways(self) -> None:
        """Tries the model now. It takes seconds; the second time nothing happens."""
        if self._found is None:
            self._found = self._probe()

    @property
    def _ways(self) -> _Ways:
        self.find_ways()
        assert self._found is not None, "just found"
        return self._found

    def _probe(self) -> _Ways:
        packed = pack_heads(self.model)
        found = probe(self.model, self.context_window)
        if packed and found.masks is None:  # it may be that which does not suit it
            unpack_heads(self.model)
            found = probe(self.model, self.context_window)
        given = (self.model, len(self.embeddings), self.work)
        alone = far = AloneRunner(*given, keeps_cache=found.keeps_cache)
        near: RaggedRunner | AloneRunner = alone
        batching = f"{ONE_AT_A_TIME}: {found.why_not}"
        if not found.keeps_cache:
            batching += ", so its whole text is run again for every token"
        if found.masks is not None:
            near, batching = RaggedRunner(self.model, found.masks, len(self.embeddings), self.work), "ragged"
        if found.steady is not None:
            keeps = found.keeps_cache and found.settles
            far = AloneRunner(*given, keeps_cache=keeps, in_pieces=False, resets=not found.settles)
            batching += f" (up to {found.steady} ids, longer ones one at a time: their length changes all positions)"
        return _Ways(near, far, found.steady, batching)

    def next_logits(self, rows: Sequence[MemberRow]) -> torch.Tensor:
        """See `Member.next_logits`."""
        ways = self._ways
        far = [self._is_far(row) for row in rows]
        if not any(far):
            return ways.near.next_logits(rows)
        logits = torch.empty(len(rows), len(self.embeddings), device=self.device)
        for way, part in ((ways.near, False), (ways.far, True)):
            places = [i for i, is_far in enumerate(far) if is_far is part]
            if places:
                logits[places] = way.next_logits([rows[i] for i in places])
        return logits

    def prefill(self, row: MemberRow, limit: int) -> int:
        """See `Member.prefill`."""
        way = self._ways.far if self._is_far(row) else self._ways.near
        return way.prefill(row, limit)

    def _is_far(self, row: MemberRow) -> bool:
        return self._ways.steady is not None and len(row.ids) > self._ways.steady

    def token_logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """See `Member.token_logprobs`."""
        batch = torch.tensor([list(ids)], device=self.device)
        logits = self.model(batch, use_cache=False).logits[0, start - 1 : -1].float()  # [tokens, vocabulary]
        chosen = torch.log_softmax(logits, dim=-1).gather(-1, batch[0, start:, None])[:, 0]
        return [float(x) for x in chosen]
