"""The interface of fusion strategies: their inputs in a step, and everything they offer besides fusing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.fusion.comparison import Comparison
from deepen_core.members.base import Member
from deepen_core.progress import Steps
from deepen_core.results import FusionInfo
from deepen_core.tokenization.vocabulary import Vocabulary


def _nothing_heard(_member: int) -> Sequence[Heard]:
    return ()


@dataclass(frozen=True)
class StepInputs:
    """The members' outputs in one step.

    Attributes:
        logprobs: For each member its log-probabilities [sequences, vocabulary of the member], float32; None if it
            abstains in every sequence. The values of a sequence in which its weight is zero are meaningless.
        weights: float32 [sequences, members] on the CPU. `Fusion.fuse` scales them to sum to one in each sequence.
        heard: Given a member's number, returns the end of its text in each sequence; for strategies that heal tokens.
        comparison: As `Fusion.compare` returned it for the same outputs, where it was asked for.
    """

    logprobs: Sequence[torch.Tensor | None]
    weights: torch.Tensor
    heard: Callable[[int], Sequence[Heard]] = _nothing_heard
    comparison: Comparison | None = None

    def of(self, member: int) -> torch.Tensor:
        """Returns the log-probabilities of a member that does not abstain."""
        logprobs = self.logprobs[member]
        assert logprobs is not None, "this member never abstains"
        return logprobs

    def only(self, places: torch.Tensor) -> StepInputs:
        """Returns the inputs for some of the sequences.

        Args:
            places: int64 [selected sequences] on the CPU.
        """
        chosen = [None if p is None else p[places.to(p.device)] for p in self.logprobs]
        wanted = places.tolist()

        def heard(member: int) -> Sequence[Heard]:
            every = self.heard(member)
            return [every[place] for place in wanted] if every else ()

        comparison = None if self.comparison is None else self.comparison.only(places)
        return StepInputs(chosen, self.weights[places], heard, comparison)

    def of_several(self, main: int) -> tuple[StepInputs, torch.Tensor]:
        """Returns the inputs for the sequences in which others than main count, and `Comparison.line_of` of all.

        Args:
            main: The number of the main member.
        """
        several = (self.weights[:, main] < self.weights.sum(-1)).nonzero()[:, 0]
        line_of = torch.full((len(self.weights),), -1)
        line_of[several] = torch.arange(len(several))
        return self if len(several) == len(line_of) else self.only(several), line_of


@dataclass(frozen=True)
class MemberFacts:
    """What is known about a member before its weights are loaded.

    Attributes:
        name: Its name.
        vocabulary: Of its tokenizer.
        device: The device that it will be loaded on.
        embedded: Whether it may have embeddings, see `Embedded`.
    """

    name: str
    vocabulary: Vocabulary
    device: torch.device
    embedded: bool = True


class Fusion(ABC):
    """A strategy: fuses the members' distributions into one over main's vocabulary.

    It is created by `build`. Subclasses fuse in `_combine`, and override other methods where the default does not fit.

    Args:
        main: The number of the member whose vocabulary is used.
    """

    steps_of_member: ClassVar[int] = 0
    """Number of progress steps that `build` takes for each member."""
    compares_tokens: ClassVar[bool] = False
    """Whether `compare` returns a comparison."""

    def __init__(self, main: int) -> None:
        self._main = main

    @classmethod  # noqa: B027  most strategies accept any members
    def check(cls, members: Sequence[MemberFacts], config: Any) -> None:
        """Rejects members that cannot be fused, before their weights are loaded.

        Args:
            members: The members in their order.
            config: The strategy's options.

        Raises:
            ConfigurationError: If there is not enough memory for what the options ask for.
            NoCommonTokensError: If the members must share tokens and do not.
        """

    @classmethod
    @abstractmethod
    def build(cls, members: Sequence[Member], main: int, config: Any, steps: Steps) -> Self:
        """Builds the strategy for these members.

        Args:
            members: The members in their order.
            main: The number of the member whose vocabulary is used.
            config: The strategy's options.
            steps: Reports progress: `steps_of_member` steps for each member, and one more.

        Raises:
            ConfigurationError: If a member lacks what the strategy needs.
            NoCommonTokensError: If the members must share tokens and do not.
        """
        ...

    def compare(self, inputs: StepInputs) -> Comparison | None:  # noqa: ARG002  most strategies compare nothing
        """Compares what the members say, token by token, before it is known how much each of them counts.

        Args:
            inputs: The outputs; weights are zero for members that abstain, and any other number else.

        Returns:
            The comparison; None from a strategy without `compares_tokens`.
        """
        return None

    @torch.inference_mode()
    def fuse(self, inputs: StepInputs) -> torch.Tensor:
        """Fuses the members' distributions in a step.

        Returns:
            Fused log-probabilities [sequences, main's vocabulary], normalised, on main's device. Where only main has
            weight they are main's own, bit for bit.
        """
        main = inputs.of(self._main)
        shares = inputs.weights / inputs.weights.sum(-1, keepdim=True)  # [sequences, members]
        mixed = (shares[:, self._main] < 1.0).nonzero()[:, 0]
        if len(mixed) == 0:
            return main
        scaled = StepInputs(inputs.logprobs, shares, inputs.heard, inputs.comparison)
        if len(mixed) == len(main):
            return self._combine(scaled)
        return main.index_copy(0, mixed.to(main.device), self._combine(scaled.only(mixed)))

    def logprobs_of(self, inputs: StepInputs, token_ids: Sequence[int]) -> torch.Tensor:
        """Returns the fused log-probability of one of main's tokens in each sequence: that of `fuse`, up to rounding.

        Args:
            inputs: The members' outputs.
            token_ids: A token for each sequence.

        Returns:
            float32 [sequences].
        """
        fused = self.fuse(inputs)
        return fused.gather(1, torch.tensor(list(token_ids), device=fused.device)[:, None])[:, 0]

    @abstractmethod
    def _combine(self, inputs: StepInputs) -> torch.Tensor:
        """Fuses sequences in which members other than main have weight too; weights sum to one in each."""
        ...

    @classmethod
    def default_policy(cls, *, asks_by_token: bool) -> str:
        """Returns the name of the policy that weighs several members where none is asked for.

        Args:
            asks_by_token: Whether a member would have to ask elsewhere for each token of a prompt.
        """
        if not cls.compares_tokens:
            return "static"
        return "adaptive" if asks_by_token else "context"

    @abstractmethod
    def describe(self, counted: Sequence[int]) -> FusionInfo:
        """Returns what to report in `Ensemble.info`.

        Args:
            counted: Numbers of the members that take part: main, and those with a weight.
        """
        ...

    def warnings(self, counted: Sequence[int]) -> list[str]:  # noqa: ARG002  used by strategies with warnings
        """Returns measured reasons why these members may not fuse well.

        Args:
            counted: Numbers of the members with a weight.
        """
        return []
