"""`"bytes"`: fuses what the members say of the next bytes, spelled in main's tokens.

Shapes: distributions are [sequences, vocabulary]. In each step:

1. A member's text may end within a token that it would have said instead. What it says of the bytes that follow is its
   distribution after the text as it is, and what remains of such longer tokens, by Bayes' rule (`overhang`).
2. Both are spelled in main's tokens (`spelling`, `rests`), without what main has ruled out by its own tokens.
3. A weighted mean of these: geometric ("product"), or arithmetic ("mixture").

Tokens that end a text stand for one another. Main alone decides on its other control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import Self

from deepen_core.config import BytesConfig
from deepen_core.fusion.anchors.main_tokens import MainTokens
from deepen_core.fusion.anchors.segmentation import Segmentation, segmentations_of
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.bytes.byte_order import ByteOrder
from deepen_core.fusion.bytes.overhang import OverhangFinder
from deepen_core.fusion.bytes.rests import RestSpelling
from deepen_core.fusion.bytes.spelling import Spelling
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
        cuts: How each member cuts a text.
        sizes: Number of logits of each member.
        main: The number of the member whose vocabulary is used.
        config: The strategy's options.
        devices: The device of each member's logits.
        members: The members, for reports; empty for none.
    """

    compares_tokens = True

    def __init__(
        self,
        cuts: Sequence[Segmentation],
        sizes: Sequence[int],
        main: int,
        config: BytesConfig,
        devices: Sequence[torch.device],
        members: Sequence[Member] = (),
    ) -> None:
        super().__init__(main)
        vocabularies = [one.vocabulary for one in cuts]
        self._config = config
        self._members = list(members)
        size, device = sizes[main], devices[main]
        orders = [ByteOrder(v, its_size) for v, its_size in zip(vocabularies, sizes, strict=True)]
        tokens = MainTokens(cuts[main], size)
        self._spellings = [
            None if n == main else Spelling(its_cuts, its_size, tokens, device)
            for n, (its_cuts, its_size) in enumerate(zip(cuts, sizes, strict=True))
        ]
        self._rests = RestSpelling(cuts[main], orders[main], device)
        self._finders = [OverhangFinder(*one) for one in zip(orders, cuts, devices, strict=True)]
        self._stops = [
            torch.tensor([i for i in sorted(v.stop_ids) if i < its_size], dtype=torch.long, device=where)
            for v, its_size, where in zip(vocabularies, sizes, devices, strict=True)
        ]
        control = sorted({*range(size)} - {*orders[main].ids} - {*self._stops[main].tolist()})
        self._control = torch.tensor(control, dtype=torch.long, device=device)
        twins = _twins(vocabularies[main], size)
        self._same = torch.tensor(twins, device=device) if twins != [*range(size)] else None
        self._column_of = torch.arange(size, device=device).index_fill_(0, self._control, size)

    @classmethod
    def build(cls, members: Sequence[Member], main: int, config: BytesConfig, steps: Steps) -> Self:
        """See `Fusion.build`."""
        with steps.doing("preparing the fusion"):
            return cls(
                segmentations_of(members),
                [m.vocabulary_size for m in members],
                main,
                config,
                [m.device for m in members],
                members,
            )

    @torch.inference_mode()
    def compare(self, inputs: StepInputs) -> Comparison:
        """See `Fusion.compare`."""
        part, line_of = inputs.of_several(self._main)
        return Comparison(self._main, self._told(part), line_of, self._column_of)

    def _told(self, inputs: StepInputs) -> list[torch.Tensor | None]:
        """Returns each member's distribution in main's tokens [sequences, vocabulary], without its control tokens."""
        main = inputs.of(self._main)
        own = main.exp().index_fill_(-1, self._control, 0.0)
        own /= own.sum(-1, keepdim=True).clamp_min(_TINY)
        if self._same is None:
            return self._all_spelled(inputs, own)
        # Main's tokens of equal bytes, such as "A" and "<0x41>", are one for the others, and share as main says.
        pooled = torch.zeros_like(own).index_add_(1, self._same, own)
        shares = own / pooled[:, self._same].clamp_min(_TINY)
        told = self._all_spelled(inputs, pooled)
        return [
            own if n == self._main else None if mass is None else mass[:, self._same] * shares
            for n, mass in enumerate(told)
        ]

    def _all_spelled(self, inputs: StepInputs, own: torch.Tensor) -> list[torch.Tensor | None]:
        """Returns each member's distribution in main's tokens, `own` is main's."""
        return [
            own if member == self._main else None if p is None else self._spelled(member, p, inputs, own)
            for member, p in enumerate(inputs.logprobs)
        ]

    def _spelled(self, member: int, logprobs: torch.Tensor, inputs: StepInputs, own: torch.Tensor) -> torch.Tensor:
        """Returns another member's distribution in main's tokens.

        Args:
            member: Its number.
            logprobs: Its log-probabilities [sequences, vocabulary of the member].
            inputs: The step.
            own: Main's distribution without its control tokens.
        """
        spelling, stops = self._spellings[member], self._stops[self._main]
        assert spelling is not None, "main is not spelled"
        p = logprobs.exp()
        stopping = p[:, self._stops[member]].sum(-1).to(own.device)
        told = spelling.spelled(p.to(own.device), own)
        told[:, stops] = stopping[:, None] * (own[:, stops] / own[:, stops].sum(-1, keepdim=True).clamp_min(_TINY))
        told.addcmul_((1.0 - told.sum(-1, keepdim=True)).clamp_min(0.0), own)
        for line, heard in enumerate(inputs.heard(member) if self._config.healing else ()):
            overhang = self._finders[member].find(heard.trail, held=heard.held)
            if overhang.finished < 1.0:
                self._rests.add(overhang, heard, own[line], told[line])
            self._rests.without_ruled_out(heard, own[line], told[line])
        told /= told.sum(-1, keepdim=True).clamp_min(_TINY)
        idle = (inputs.weights[:, member] == 0).nonzero()[:, 0].to(own.device)
        told[idle] = own[idle]  # the values of a sequence in which it abstains are meaningless
        return told

    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        told = self._told(inputs) if inputs.comparison is None else inputs.comparison.told
        main, own = inputs.of(self._main), told[self._main]
        assert own is not None, "main never abstains"
        # 3) The mean.
        target = torch.log_softmax(self._log_mean(told, own, inputs.weights.to(own.device)), dim=-1)
        change = torch.where(own > 0, target - own.clamp_min(_TINY).log(), 0.0)
        return torch.log_softmax(main + change, dim=-1)

    @torch.inference_mode()
    def logprobs_of(self, inputs: StepInputs, token_ids: Sequence[int]) -> torch.Tensor:
        """See `Fusion.logprobs_of`; tokens without text keep main's probability, and all others share what is left."""
        main = inputs.of(self._main)
        ids = torch.tensor(list(token_ids), device=main.device)[:, None]
        found = main.gather(1, ids)[:, 0]
        shares = inputs.weights / inputs.weights.sum(-1, keepdim=True)
        mixed = (shares[:, self._main] < 1.0).nonzero()[:, 0]
        if not len(mixed):
            return found
        part = StepInputs(inputs.logprobs, shares, inputs.heard, inputs.comparison).only(mixed)
        told = self._told(part) if part.comparison is None else part.comparison.told
        own, at = told[self._main], mixed.to(main.device)
        assert own is not None, "main never abstains"
        target = self._log_mean(told, own, part.weights.to(own.device))
        before = own.gather(1, ids[at])[:, 0]
        after = target.gather(1, ids[at])[:, 0] - target.logsumexp(-1)
        return found.index_add(0, at, torch.where(before > 0, after - before.clamp_min(_TINY).log(), 0.0))

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
            bytes_held=sum(one.bytes_held for one in self._spellings if one is not None),
            limits=[main_limit(members, self._members[self._main])] if len(members) > 1 else [],
        )


def _twins(vocabulary: Vocabulary, size: int) -> list[int]:
    """Returns for each id that of the token with the same bytes that the tokenizer itself uses, else the id."""
    found = []
    for token_id in range(size):
        value = vocabulary.token_bytes(token_id)
        same = None if value is None else vocabulary.id_of(value)
        found.append(token_id if same is None or same >= size else same)
    return found
