"""`"union"`: matches the members' most probable tokens by their bytes, and averages them.

After UniTE (Yao et al., 2024, "Determine-Then-Ensemble"), with two differences: one of main's own tokens is chosen, so
each step is one token of main's; and all tokens outside the union keep main's probability, so nothing is cut off for
samplers and grammars. No embeddings are read, and members need not share any tokens. In each step:

1. Take each member's `top_k` most probable tokens. Main's counterparts of them are the union, [sequences, union]: the
   token with the same bytes, else the longest of main's tokens that the bytes begin with.
2. Each member gives every token of the union the probability of its own token with the same bytes, else of its longest
   token that the bytes begin with. The mass of its `top_k` tokens without an exact counterpart is added where step 1
   mapped them.
3. Scale these to sum to one for each member, and average them by weight.
4. Distribute main's mass on the union according to that average.

Tokens that end a text stand for one another. Main alone decides on other control tokens: they are never in the union.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import Self

from deepen_core.config import UnionConfig
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.diagnostics import AVERAGE_LIMIT, main_limit
from deepen_core.members.base import Member
from deepen_core.progress import Steps
from deepen_core.results import FusionInfo
from deepen_core.tokenization.vocabulary import Vocabulary

_TINY = 1e-30
_NONE = -1


class UnionFusion(Fusion):
    """The weighted mean of the members' most probable tokens.

    Args:
        vocabularies: The members' vocabularies.
        sizes: Number of logits of each member.
        main: The number of the member whose vocabulary is used.
        config: The strategy's options.
        devices: The device of each member's logits.
        members: The members, for reports; empty for none.
    """

    def __init__(
        self,
        vocabularies: Sequence[Vocabulary],
        sizes: Sequence[int],
        main: int,
        config: UnionConfig,
        devices: Sequence[torch.device],
        members: Sequence[Member] = (),
    ) -> None:
        super().__init__(main)
        self._config = config
        self._members = list(members)
        mine = vocabularies[main]
        # Main's counterpart of each token of each member, and each member's counterpart of each token of main's.
        self._to_main = [
            _counterparts(v, size, mine).to(device)
            for v, size, device in zip(vocabularies, sizes, devices, strict=True)
        ]
        self._from_main = [
            _counterparts(mine, sizes[main], v).to(device) for v, device in zip(vocabularies, devices, strict=True)
        ]
        self._exact = [
            _same_bytes(v, size, mine, to_main).to(device)
            for v, size, to_main, device in zip(vocabularies, sizes, self._to_main, devices, strict=True)
        ]
        self._stops = [
            torch.tensor([i for i in sorted(v.stop_ids) if i < size], dtype=torch.long, device=device)
            for v, size, device in zip(vocabularies, sizes, devices, strict=True)
        ]

    @classmethod
    def build(cls, members: Sequence[Member], main: int, config: UnionConfig, steps: Steps) -> Self:
        """See `Fusion.build`."""
        with steps.doing("preparing the fusion"):
            return cls(
                [m.tokenizer.vocabulary for m in members],
                [m.vocabulary_size for m in members],
                main,
                config,
                [m.device for m in members],
                members,
            )

    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        main = inputs.of(self._main)
        weights = inputs.weights.to(main.device)
        # 1) Each member's most probable tokens, by its own ids and by main's, [sequences, top_k].
        named = [None if p is None else self._named(member, p) for member, p in enumerate(inputs.logprobs)]
        speaking = [
            main_ids.masked_fill(weights[:, member, None] == 0, _NONE)
            for member, pair in enumerate(named)
            if pair is not None
            for main_ids in (pair[1].to(main.device),)
        ]
        union = torch.cat(speaking, dim=-1).sort(dim=-1).values  # [sequences, union]
        live = union != _NONE
        live[:, 1:] &= union[:, 1:] != union[:, :-1]
        ids = union.clamp_min(0)
        # 2) and 3) The average of the members' probabilities for them.
        average = torch.zeros(ids.shape, dtype=main.dtype, device=main.device)
        for member, (logprobs, pair) in enumerate(zip(inputs.logprobs, named, strict=True)):
            if logprobs is not None and pair is not None:
                given = self._given(member, logprobs, pair, union, live).to(main.device)
                weight = weights[:, member, None]
                average += torch.where(weight > 0, weight * given, 0.0)  # where it abstains, its values are meaningless
        average = average / average.sum(-1, keepdim=True).clamp_min(_TINY)
        # 4) Redistribute main's mass on the union. Stop tokens keep their shares of the stop class.
        stops = self._stops[self._main]
        ends = live & torch.isin(ids, stops)
        stopping = torch.logsumexp(main[:, stops], dim=-1, keepdim=True)
        own = torch.where(ends, stopping, main.gather(-1, ids)).masked_fill(~live, -torch.inf)
        new = average.clamp_min(_TINY).log() + torch.logsumexp(own, dim=-1, keepdim=True)
        # Places that are not live repeat a token, or have none: they are written to an extra place, which is dropped.
        padded = torch.cat([main, main.new_zeros(len(main), 1)], dim=-1)
        fused = padded.scatter(-1, ids.masked_fill(~live, main.shape[-1]), new)[:, :-1]
        if len(stops):
            factor = (new - stopping).masked_fill(~ends, -torch.inf).amax(-1, keepdim=True)
            fused[:, stops] = torch.where(factor.isfinite(), main[:, stops] + factor, main[:, stops])
        return torch.log_softmax(fused, dim=-1)

    def _named(self, member: int, logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a member's most probable tokens and main's counterparts, int64 [sequences, top_k]; -1 for none."""
        ids = logprobs.topk(min(self._config.top_k, logprobs.shape[-1]), dim=-1).indices
        return ids, self._to_main[member][ids]

    def _given(
        self,
        member: int,
        logprobs: torch.Tensor,
        named: tuple[torch.Tensor, torch.Tensor],
        union: torch.Tensor,
        live: torch.Tensor,
    ) -> torch.Tensor:
        """Returns a member's probabilities for the union's tokens, [sequences, union], summing to one or zero."""
        union, live = union.to(logprobs.device), live.to(logprobs.device)
        own_ids = self._from_main[member][union.clamp_min(0)]
        mass = logprobs.gather(-1, own_ids.clamp_min(0)).exp().masked_fill(~live | (own_ids == _NONE), 0.0)
        if len(self._stops[member]):  # all stop tokens count as one
            stops = logprobs[:, self._stops[member]].exp().sum(-1, keepdim=True)
            mass = torch.where(live & torch.isin(own_ids, self._stops[member]), stops, mass)
        if member != self._main:
            ids, main_ids = named
            begun = (main_ids != _NONE) & ~self._exact[member][ids]
            place = torch.searchsorted(union, main_ids.clamp_min(0)).clamp_max(union.shape[-1] - 1)
            found = begun & (union.gather(-1, place) == main_ids)
            mass = mass.scatter_add(-1, place, logprobs.gather(-1, ids).exp().masked_fill(~found, 0.0))
        return mass / mass.sum(-1, keepdim=True).clamp_min(_TINY)

    def describe(self, counted: Sequence[int]) -> FusionInfo:
        """See `Fusion.describe`."""
        members = [self._members[number] for number in counted]
        held = [*self._to_main, *self._from_main, *self._exact]
        return FusionInfo(
            bytes_held=sum(t.numel() * t.element_size() for t in held),
            limits=[main_limit(members, self._members[self._main]), AVERAGE_LIMIT] if len(members) > 1 else [],
        )


def _counterparts(vocabulary: Vocabulary, size: int, other: Vocabulary) -> torch.Tensor:
    """Returns the counterpart in another vocabulary of each token of one, int64 [size]; -1 where there is none.

    It is the token with the same bytes, else the longest one that the bytes begin with. For a token that ends a text it
    is the first one that does so. Control tokens have no counterpart.
    """
    stop = min(other.stop_ids, default=_NONE)
    found = [_NONE] * size
    for token_id in range(size):
        value = vocabulary.token_bytes(token_id)
        if token_id in vocabulary.stop_ids:
            found[token_id] = stop
        elif value and (counterpart := other.longest_beginning(value)) is not None:
            found[token_id] = counterpart
    return torch.tensor(found, dtype=torch.long)


def _same_bytes(vocabulary: Vocabulary, size: int, other: Vocabulary, counterparts: torch.Tensor) -> torch.Tensor:
    """Whether each token's counterpart has the same bytes, or ends a text like the token itself, bool [size]."""
    pairs = enumerate(counterparts.tolist())
    same = [
        i in vocabulary.stop_ids or (c != _NONE and vocabulary.token_bytes(i) == other.token_bytes(c)) for i, c in pairs
    ]
    return torch.tensor(same[:size], dtype=torch.bool)
