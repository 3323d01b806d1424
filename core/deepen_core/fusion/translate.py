"""`"translate"`: translates every token of the others to one of main's, and averages the distributions.

After ToT (token translation; "Inference Scaling of LLM Ensembling: Bridging Token Spaces with Token Translation", 2025,
openreview.net/forum?id=2bPyuL6Cda): a token counts for the first of those that main's tokenizer cuts its text into. No
embeddings are read, and members need not share any tokens. The translation is made once: one id per token of a member.

Shapes: distributions are [sequences, vocabulary]; translated ones have main's vocabulary. In each step:

1. Leave out main's control tokens: main alone decides on them, and they keep the probability that it gives them. What
   is left, scaled to sum to one, is main's distribution.
2. Translate the others' distributions. Tokens that end a text stand for one another, and main's share that mass in
   proportion to main's own probabilities. What a member gives to its control tokens, or to tokens that main cannot
   begin, is distributed as main's own distribution.
3. With `by_uncertainty`, multiply each member's weight by `exp(-H)`, H the entropy of its translated distribution.
4. Average by weight, and scale to what main leaves to tokens other than control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

import torch
from typing_extensions import Self

from deepen_core.config import TranslateConfig
from deepen_core.fusion.anchors.segmentation import Segmentation
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.comparison import entropy
from deepen_core.fusion.diagnostics import AVERAGE_LIMIT, main_limit
from deepen_core.members.base import Member
from deepen_core.progress import Steps
from deepen_core.results import FusionInfo
from deepen_core.tokenization.vocabulary import Vocabulary

Encoder = Callable[[Sequence[bytes]], Sequence[int | None]]
"""Returns the first token of main's encoding of each of some values, as `Segmentation.firsts` does."""

_TINY = 1e-30


class TranslateFusion(Fusion):
    """The weighted mean of the members' distributions, translated to main's tokens.

    Args:
        translations: As `translation` returns them, one per member on the device of its logits; None for main.
        vocabulary: Main's vocabulary.
        size: Number of main's logits.
        main: The number of the member whose vocabulary is used.
        config: The strategy's options.
        device: The device of main's logits.
        members: The members, for reports; empty for none.
    """

    def __init__(
        self,
        translations: Sequence[torch.Tensor | None],
        vocabulary: Vocabulary,
        size: int,
        main: int,
        config: TranslateConfig,
        device: torch.device,
        members: Sequence[Member] = (),
    ) -> None:
        super().__init__(main)
        self._translations = list(translations)
        self._config = config
        self._members = list(members)
        stops = [i for i in sorted(vocabulary.stop_ids) if i < size]
        control = [i for i in range(size) if vocabulary.token_bytes(i) is None and i not in vocabulary.stop_ids]
        self._stops = torch.tensor(stops, dtype=torch.long, device=device)
        self._control = torch.tensor(control, dtype=torch.long, device=device)

    @classmethod
    def build(cls, members: Sequence[Member], main: int, config: TranslateConfig, steps: Steps) -> Self:
        """See `Fusion.build`."""
        with steps.doing("preparing the fusion"):
            mine, translations = members[main], list[torch.Tensor | None]()
            vocabulary, size = mine.tokenizer.vocabulary, mine.vocabulary_size
            firsts = Segmentation(vocabulary, mine.tokenizer.backend).firsts
            for number, member in enumerate(members):
                other, its_size = member.tokenizer.vocabulary, member.vocabulary_size
                found = None if number == main else translation(other, its_size, vocabulary, size, firsts)
                translations.append(None if found is None else found.to(member.device))
            return cls(translations, vocabulary, size, main, config, mine.device, members)

    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        main = inputs.of(self._main)
        # 1) Main's distribution without its control tokens, and the mass that they leave, [sequences, 1].
        own = main.exp().index_fill_(-1, self._control, 0.0)
        room = own.sum(-1, keepdim=True)
        own /= room.clamp_min(_TINY)
        # 2) All distributions over main's tokens, [sequences, vocabulary].
        ending = torch.softmax(main[:, self._stops], dim=-1).nan_to_num(0.0)  # nothing if main rules all of them out
        told = [
            own if member == self._main else None if p is None else self._translated(member, p, inputs, own, ending)
            for member, p in enumerate(inputs.logprobs)
        ]
        # 3) The weights, [sequences, members].
        weights = inputs.weights.to(main.device)
        if self._config.by_uncertainty:
            weights = _by_uncertainty(told, weights)
        # 4) The average. A trace of main's is always in it, so that tokens that nobody else names stay in main's order.
        average = weights[:, self._main, None] * own
        for member, mass in enumerate(told):
            if mass is not None and member != self._main:
                average.addcmul_(weights[:, member, None], mass)
        average *= room / average.sum(-1, keepdim=True).clamp_min(_TINY)
        fused = torch.maximum(average.log_(), main + log(_TINY))
        fused[:, self._control] = main[:, self._control]
        return fused

    def _translated(
        self, member: int, logprobs: torch.Tensor, inputs: StepInputs, own: torch.Tensor, ending: torch.Tensor
    ) -> torch.Tensor:
        """Returns another member's distribution over main's tokens, [sequences, main's vocabulary].

        Args:
            member: Its number.
            logprobs: Its log-probabilities [sequences, vocabulary of the member].
            inputs: The step.
            own: Main's distribution without its control tokens.
            ending: Each stop token's share of main's probability to end a text, [sequences, stop tokens].
        """
        # Behind main's tokens come the stop tokens of the member, and what is not translated.
        size, to_main = own.shape[-1], self._translations[member]
        assert to_main is not None, "main is not translated"
        mass = logprobs.new_zeros(len(logprobs), size + 2)
        mass.scatter_add_(-1, to_main.expand(len(logprobs), -1), logprobs.exp())
        mass = mass.to(own.device)
        told = mass[:, :size]
        told[:, self._stops] += mass[:, size, None] * ending
        told.addcmul_((1.0 - told.sum(-1, keepdim=True)).clamp_min(0.0), own)
        idle = (inputs.weights[:, member] == 0).nonzero()[:, 0].to(own.device)
        told[idle] = own[idle]  # the values of a sequence in which it abstains are meaningless
        return told

    def describe(self, counted: Sequence[int]) -> FusionInfo:
        """See `Fusion.describe`."""
        members = [self._members[number] for number in counted]
        held = [self._control, *(t for t in self._translations if t is not None)]
        return FusionInfo(
            bytes_held=sum(t.numel() * t.element_size() for t in held),
            limits=[main_limit(members, self._members[self._main]), AVERAGE_LIMIT] if len(members) > 1 else [],
        )


def translation(vocabulary: Vocabulary, size: int, mine: Vocabulary, my_size: int, firsts: Encoder) -> torch.Tensor:
    """Returns the token of main's that each token of another member counts for.

    It is the first token of main's encoding of its text; for one that is not whole characters, or that main's tokenizer
    changes, the longest token of main's that its bytes begin with.

    Args:
        vocabulary: The other member's vocabulary.
        size: Number of its logits.
        mine: Main's vocabulary.
        my_size: Number of main's logits.
        firsts: Main's tokenizer.

    Returns:
        int64 [size]: ids of main's; `my_size` for tokens that end a text, `my_size + 1` for other control tokens, ids
        without a token, and tokens that begin with none of main's.
    """
    values = {i: value for i in range(size) if (value := vocabulary.token_bytes(i))}
    found = [my_size if i in vocabulary.stop_ids else my_size + 1 for i in range(size)]
    for (token_id, value), first in zip(values.items(), firsts(list(values.values())), strict=True):
        begun = mine.longest_beginning(value) if first is None else first
        if begun is not None:
            found[token_id] = begun
    return torch.tensor(found, dtype=torch.long)


def _by_uncertainty(told: Sequence[torch.Tensor | None], weights: torch.Tensor) -> torch.Tensor:
    """Returns the weights multiplied by `exp(-H)` and scaled to sum to one, [sequences, members].

    Args:
        told: Each member's distribution over main's tokens; None for members that abstain in all sequences.
        weights: The given ones, [sequences, members]; zero where a member abstains.
    """
    unsure = [weights.new_zeros(len(weights)) if mass is None else entropy(mass) for mass in told]
    return torch.softmax(weights.log() - torch.stack(unsure, dim=-1), dim=-1)
