"""How much each member counts in a step: one small class per policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import torch

from deepen_core.config.weights import POLICIES
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.prompts import PromptLikelihoods


@dataclass(frozen=True)
class WeighingInputs:
    """What a policy can base its weights on in a step.

    Attributes:
        logprobs: For each member its log-probabilities [sequences, vocabulary of the member], float32; None if it
            abstains in every sequence.
        speaking: bool [sequences, members] on the CPU: which members have an output. Where this is false, the values in
            `logprobs` are meaningless.
        record: float32 [sequences, numbers] on the CPU: what the policy has kept of each answer so far, as returned by
            `WeightPolicy.first` and `WeightPolicy.after`.
        comparison: What the members say token by token; only for a policy with `compares`.
        prompts: How likely the members find each sequence's prompt; only for a policy with `reads_prompts`.
    """

    logprobs: Sequence[torch.Tensor | None]
    speaking: torch.Tensor
    record: torch.Tensor
    comparison: Comparison | None = None
    prompts: PromptLikelihoods | None = None


class WeightPolicy(ABC):
    """Computes new weights of the members in each step."""

    compares: ClassVar[bool] = False
    """Whether it uses `WeighingInputs.comparison` or `record`: the strategy must compare members token by token."""
    learns: ClassVar[bool] = False
    """Whether it uses `WeighingInputs.record`, and is told which tokens were chosen."""
    reads_prompts: ClassVar[bool] = False
    """Whether it uses `WeighingInputs.prompts`: members run the end of each new prompt, once more if need be."""

    @property
    def label(self) -> str:
        """Its name in `POLICIES`, or that of its class."""
        path = f"{type(self).__module__}:{type(self).__name__}"
        return next((name for name, place in POLICIES.items() if place == path), type(self).__name__)

    @abstractmethod
    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """Returns how much each member counts in each sequence.

        Returns:
            float32 [sequences, members] on the CPU, none negative. The weights of members that abstain are ignored, and
            the rest is scaled to sum to one.
        """
        ...

    def first(self) -> list[float]:
        """Returns the record of an answer before its first token; for a policy that learns."""
        return []

    def after(self, record: Sequence[float], relative: Sequence[float]) -> list[float]:  # noqa: ARG002
        """Returns the record of an answer after one more token; for a policy that learns.

        Args:
            record: The one before it.
            relative: How much more probable each member found the token than main did, in nats, limited to 5 either
                way; 0 for main and for members that abstained.
        """
        return list(record)

    def needed(self, prompts: PromptLikelihoods) -> torch.Tensor:
        """Returns which members answers need; the others are not run. For a policy that reads prompts.

        Args:
            prompts: As in `WeighingInputs`.

        Returns:
            bool [sequences, members].
        """
        return torch.ones_like(prompts.nats, dtype=torch.bool)

    @abstractmethod
    def describe(self) -> list[float]:
        """Returns one weight per member for reports, summing to one: the weights before any output is known.

        A member of weight 0 is never run, unless it is main.
        """
        ...


class StaticWeights(WeightPolicy):
    """The same weights in every step.

    Args:
        weights: One per member, summing to one.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._given = list(weights)
        self._weights = torch.tensor(self._given, dtype=torch.float32)

    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """See `WeightPolicy.weights`."""
        return self._weights.expand(len(step.speaking), -1)

    def describe(self) -> list[float]:
        """See `WeightPolicy.describe`."""
        return list(self._given)


class ConfidenceWeights(StaticWeights):
    """Weights that follow which member is surer of the next token, `w_i ~ s_i exp(-H_i)`, H its entropy in nats.

    The entropy is that over the columns that all members can know, since members with longer tokens choose among more
    of them.
    """

    compares: ClassVar[bool] = True

    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """See `WeightPolicy.weights`."""
        assert step.comparison is not None, "it compares"
        return torch.softmax(self._weights.log() - step.comparison.entropies, dim=-1)


class ConsistencyWeights(StaticWeights):
    """Weights that follow which member agrees with the others and is sure, `w_i ~ s_i A_i / H_i`.

    After CoRE (arXiv 2510.13855): the agreement `A_i = sum_a c_i(a) exp(-2 |c_i(a) - m(a)|)` is that of its
    distribution c_i over shared tokens with the mean m of all members', and H its entropy in nats. Main counts at least
    as much as the others together.

    """

    compares: ClassVar[bool] = True

    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """See `WeightPolicy.weights`."""
        comparison = step.comparison
        assert comparison is not None, "it compares"
        speaking = step.speaking.float()
        places = comparison.line_of >= 0
        lines = torch.empty(int(places.sum()), speaking.shape[1], dtype=torch.float32)
        lines[comparison.line_of[places]] = speaking[places]
        mean = _mean(comparison, lines)
        agreement = comparison.by_member(lambda mass: (mass * torch.exp(-2 * (mass - mean).abs())).sum(-1))
        ratio = self._weights * speaking * agreement / comparison.entropies.clamp_min(_LEAST_ENTROPY)
        ratio = torch.where(ratio.sum(-1, keepdim=True) > 0, ratio, self._weights)  # main speaks alone
        ratio = ratio / ratio.sum(-1, keepdim=True)
        main = comparison.main
        others = ratio.sum(-1) - ratio[:, main]
        ratio[:, main] = torch.maximum(ratio[:, main], others)
        return ratio


class PerplexityWeights(StaticWeights):
    """Weights that follow which member knows such texts as the prompt, `w_i ~ s_i exp(rate * span * l_i)`.

    After PackLLM-sim (arXiv 2404.11531), whose weights are a softmax of the log-perplexities of the prompt. Here l_i is
    the log-likelihood a byte rather than a token, so that members with other tokenizers are comparable, and the span
    makes it that of ten tokens of four bytes: where a code model and a general one of about the same size differ by 0.1
    nats a byte, one has 55 times the weight of the other. A prompt shorter than the span counts as itself. The weights
    stay the same throughout an answer. One below a thousandth is zero, so that an answer takes only the members that
    have a say in it.

    Args:
        weights: The members' shares s, one per member, summing to one.
        span: Number of bytes that count.
        rate: How much a nat of these counts.
    """

    reads_prompts: ClassVar[bool] = True

    def __init__(self, weights: Sequence[float], span: float = 40.0, rate: float = 1.0) -> None:
        super().__init__(weights)
        self._span = span
        self._rate = rate

    def weights(self, step: WeighingInputs) -> torch.Tensor:
        """See `WeightPolicy.weights`."""
        assert step.prompts is not None, "it reads prompts"
        return self._after(step.prompts)

    def needed(self, prompts: PromptLikelihoods) -> torch.Tensor:
        """See `WeightPolicy.needed`."""
        return self._after(prompts) > 0

    def _after(self, prompts: PromptLikelihoods) -> torch.Tensor:
        """Returns the weights after prompts, [sequences, members]."""
        found = torch.softmax(self._weights.log() + self._rate * prompts.over(self._span), dim=-1)
        kept = torch.where(found >= _LEAST_WEIGHT, found, 0.0)
        return kept / kept.sum(-1, keepdim=True).clamp_min(_LEAST_WEIGHT)  # zeros where none that is left has a share


_LEAST_WEIGHT = 1e-3
_LEAST_ENTROPY = 1e-3  # nats: a member that is sure is not infinitely sure


def _mean(comparison: Comparison, speaking: torch.Tensor) -> torch.Tensor:
    """Returns the mean over the members that speak, [lines, known]; `speaking` is float32 [lines, members]."""
    total = torch.zeros_like(comparison.own)
    for member, mass in enumerate(comparison.told):
        if mass is not None:
            total += speaking[:, member, None].to(mass.device) * mass
    return total / speaking.sum(-1, keepdim=True).to(total.device)


def policy_named(name: str, shares: Sequence[float]) -> WeightPolicy:
    """Returns a policy of `deepen_core.config.weights.POLICIES`.

    Args:
        name: Its name.
        shares: The members' shares, summing to one.
    """
    return policy_class(name)(shares)


def policy_class(name: str) -> type[StaticWeights]:
    """Returns the class of a policy of `deepen_core.config.weights.POLICIES`."""
    module, _, class_name = POLICIES[name].partition(":")
    policy: type[StaticWeights] = getattr(import_module(module), class_name)
    return policy
