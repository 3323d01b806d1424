"""`"bytes"`: fuses what the members say of the bytes of main's tokens, whatever their own tokens are.

Shapes: distributions are [sequences, vocabulary], masses [sequences, main's tokens in byte order]. In each step:

1. Each member's probability that the text goes on with the bytes of each of main's tokens, `P_i(b(t))`: the mass of its
   tokens that begin with them. What it would have said instead of its last tokens counts too (`overhang`).
2. The member's distribution in main's tokens: `q_i(t) ~ p_main(t) P_i(b(t)) / P_main(b(t))`. Main's own share of `b(t)`
   that is the token t, and not a longer one, stays.
3. A weighted mean of these: arithmetic ("mixture"), or geometric ("product").

Tokens that end a text stand for one another. Main alone decides on its other control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import Self

from deepen_core.config import BytesConfig
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.bytes.byte_order import ByteOrder
from deepen_core.fusion.bytes.member_bytes import MemberBytes
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.diagnostics import main_limit
from deepen_core.members.base import Member
from deepen_core.progress import Steps
from deepen_core.results import FusionInfo
from deepen_core.tokenization.vocabulary import Vocabulary

_TINY = 1e-30


class BytesFusion(Fusion):
    """The mean of the members' distributions of bytes.

    Args:
        vocabularies: The members' vocabularies.
        sizes: Number of logits of each member.
        main: The number of the member whose vocabulary is used.
        config: The strategy's options.
        devices: The device of each member's logits.
        members: The members, for reports; empty for none.
    """

    compares_tokens = True

    def __init__(
        self,
        vocabularies: Sequence[Vocabulary],
        sizes: Sequence[int],
        main: int,
        config: BytesConfig,
        devices: Sequence[torch.device],
        members: Sequence[Member] = (),
    ) -> None:
        super().__init__(main)
        self._config = config
        self._members = list(members)
        order = ByteOrder(vocabularies[main], sizes[main])
        self._bytes = [
            MemberBytes(v, size, order, device) for v, size, device in zip(vocabularies, sizes, devices, strict=True)
        ]
        vocabulary, size, device = vocabularies[main], sizes[main], devices[main]
        stops = [i for i in sorted(vocabulary.stop_ids) if i < size]
        control = sorted({*range(size)} - {*order.ids} - {*stops})
        self._ids = torch.tensor(order.ids, device=device)
        self._stops = torch.tensor(stops, dtype=torch.long, device=device)
        self._control = torch.tensor(control, dtype=torch.long, device=device)
        self._column_of = torch.arange(size, device=device).index_fill_(0, self._control, size)

    @classmethod
    def build(cls, members: Sequence[Member], main: int, config: BytesConfig, steps: Steps) -> Self:
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

    @torch.inference_mode()
    def compare(self, inputs: StepInputs) -> Comparison:
        """See `Fusion.compare`."""
        several = (inputs.weights[:, self._main] < inputs.weights.sum(-1)).nonzero()[:, 0]
        line_of = torch.full((len(inputs.weights),), -1)
        line_of[several] = torch.arange(len(several))
        part = inputs if len(several) == len(line_of) else inputs.only(several)
        return Comparison(self._main, self._told(part), line_of, self._column_of)

    def _told(self, inputs: StepInputs) -> list[torch.Tensor | None]:
        """Returns each member's distribution in main's tokens [sequences, vocabulary], without its control tokens."""
        main, mine = inputs.of(self._main), self._bytes[self._main]
        own = main.exp().index_fill_(-1, self._control, 0.0)
        own /= own.sum(-1, keepdim=True).clamp_min(_TINY)
        # 1) Main's mass by bytes.
        mass, stop = mine.mass(main, mine.overhangs(inputs.heard(self._main), len(main)))
        told: list[torch.Tensor | None] = []
        for member, logprobs in enumerate(inputs.logprobs):
            if member == self._main or logprobs is None:
                told.append(own if member == self._main else None)
                continue
            # 2) The others' against it.
            its = self._bytes[member]
            ratio, stopping = its.ratio(logprobs, its.overhangs(inputs.heard(member), len(main)), mass, stop)
            factor = torch.ones_like(own)
            factor[:, self._ids] = ratio
            factor[:, self._stops] = stopping[:, None]
            factor *= own
            factor /= factor.sum(-1, keepdim=True).clamp_min(_TINY)
            idle = (inputs.weights[:, member] == 0).nonzero()[:, 0].to(own.device)
            factor[idle] = own[idle]  # the values of a sequence in which it abstains are meaningless
            told.append(factor)
        return told

    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        told = self._told(inputs) if inputs.comparison is None else inputs.comparison.told
        main, own = inputs.of(self._main), told[self._main]
        assert own is not None, "main never abstains"
        # 3) The mean.
        target = torch.log_softmax(self._log_mean(told, own, inputs.weights.to(own.device)), dim=-1)
        change = torch.where(own > 0, target - own.clamp_min(_TINY).log(), 0.0)
        return torch.log_softmax(main + change, dim=-1)

    def _log_mean(self, told: Sequence[torch.Tensor | None], own: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns the logarithm of the members' mean, up to a constant per sequence, [sequences, vocabulary]."""
        floor, found = self._config.floor, torch.zeros_like(own)
        for member, mass in enumerate(told):
            weight = weights[:, member, None]
            if self._config.mode == "mixture":
                found.addcmul_(weight, own if mass is None else mass)
            else:
                mixed = own if mass is None or mass is own else torch.lerp(mass, own, floor)
                found.addcmul_(weight, mixed.clamp_min(_TINY).log())
        if self._config.mode == "mixture":
            found = found.clamp_min(_TINY).log()
        return found.masked_fill_(own <= 0, -torch.inf)

    def describe(self, counted: Sequence[int]) -> FusionInfo:
        """See `Fusion.describe`."""
        members = [self._members[number] for number in counted]
        return FusionInfo(
            bytes_held=sum(one.spelling.bytes_held for one in self._bytes),
            limits=[main_limit(members, self._members[self._main])] if len(members) > 1 else [],
        )
