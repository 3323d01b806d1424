"""A strategy together with the policy that weighs the members for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.gates import Gate
from deepen_core.fusion.policies import WeighingInputs, WeightPolicy
from deepen_core.fusion.prompts import PromptLikelihoods
from deepen_core.sampling.largest import places_of_largest


@dataclass(frozen=True)
class GivenSteps:
    """What the members say at some places of given texts, each before one of main's tokens.

    Attributes:
        texts: The number of the text that each step belongs to; the steps of a text are in order.
        token_ids: Main's token that follows in it.
        logprobs: Each member's log-probabilities [steps, vocabulary of the member], float32; None for a member that
            abstains in all steps. The values of a step in which it abstains are meaningless.
        speaking: Which members do not abstain, bool [steps, members] on the CPU.
        ends: For each member, the end of its text in each step.
        prompts: How likely the members find each step's prompt; None if it is not known.
    """

    texts: list[int]
    token_ids: list[int]
    logprobs: list[torch.Tensor | None]
    speaking: torch.Tensor
    ends: list[list[Heard]]
    prompts: PromptLikelihoods | None = None

    def heard(self, member: int) -> Sequence[Heard]:
        """See `StepInputs.heard`."""
        return self.ends[member]

    def parts(self, most: int) -> Iterator[GivenSteps]:
        """Yields the same steps in their order, at most so many at a time; nothing is copied."""
        for start in range(0, len(self.token_ids), most):
            part = slice(start, start + most)
            yield GivenSteps(
                self.texts[part],
                self.token_ids[part],
                [None if logprobs is None else logprobs[part] for logprobs in self.logprobs],
                self.speaking[part],
                [ends[part] for ends in self.ends],
                None if self.prompts is None else self.prompts.only(part),
            )


class Mixer:
    """Weighs members and fuses what they say.

    Args:
        fusion: The strategy.
        policy: Weighs the members.
        main: The number of the member whose vocabulary is used.
        gate: Decides where the other members are asked; None for everywhere.
    """

    def __init__(self, fusion: Fusion, policy: WeightPolicy, main: int, gate: Gate | None = None) -> None:
        self._fusion = fusion
        self._policy = policy
        self._main = main
        self._gate = gate

    @property
    def learns(self) -> bool:
        """See `WeightPolicy.learns`."""
        return self._policy.learns

    def first(self) -> list[float]:
        """See `WeightPolicy.first`."""
        return self._policy.first()

    def after(self, record: Sequence[float], relative: Sequence[float]) -> list[float]:
        """See `WeightPolicy.after`."""
        return self._policy.after(record, relative)

    @property
    def reads_prompts(self) -> bool:
        """See `WeightPolicy.reads_prompts`."""
        return self._policy.reads_prompts

    def needed(self, prompts: PromptLikelihoods) -> torch.Tensor:
        """See `WeightPolicy.needed`; main is always needed."""
        found = self._policy.needed(prompts)
        found[:, self._main] = True
        return found

    def compare(
        self,
        logprobs: Sequence[torch.Tensor | None],
        speaking: torch.Tensor,
        heard: Callable[[int], Sequence[Heard]],
        *,
        always: bool = False,
    ) -> Comparison | None:
        """Compares what the members say, if the policy asks for that and the strategy can.

        Args:
            logprobs: As in `StepInputs`.
            speaking: As in `WeighingInputs`.
            heard: As in `StepInputs`.
            always: Compare even if the policy does not ask for that. Fusing then takes that much less time.
        """
        if not (always or self._policy.compares):
            return None
        return self._fusion.compare(StepInputs(logprobs, speaking.float(), heard))

    def mix(self, step: WeighingInputs, heard: Callable[[int], Sequence[Heard]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighs and fuses.

        Args:
            step: What the members say, compared if the policy asks for that.
            heard: As in `StepInputs`.

        Returns:
            Fused log-probabilities [sequences, main's vocabulary], and the weights [sequences, members].
        """
        weighed = self._weighed(step, heard)
        return self._fusion.fuse(weighed), weighed.weights

    def _weighed(self, step: WeighingInputs, heard: Callable[[int], Sequence[Heard]]) -> StepInputs:
        """Returns what to fuse. The weights of members other than one that abstains are scaled up."""
        weights = self._policy.weights(step) * step.speaking
        weights[weights.sum(-1) == 0, self._main] = 1.0  # main has weight zero and all others abstain
        return StepInputs(step.logprobs, weights, heard, step.comparison)

    @torch.inference_mode()
    def logprobs_of(
        self, steps: GivenSteps, known: dict[int, list[float]], comparison: Comparison | None = None
    ) -> list[float]:
        """Returns the fused log-probability (nats) of the token that follows in each step of given texts.

        Args:
            steps: The steps.
            known: The record of each text before them (`WeighingInputs.record`); afterwards, after them.
            comparison: Of the same steps by the same strategy, if there is one already.
        """
        weighed = self._weighed_over(steps, known, comparison)
        found: list[float] = self._fusion.logprobs_of(weighed, steps.token_ids).tolist()
        return found

    @torch.inference_mode()
    def choices_in(
        self, steps: GivenSteps, known: dict[int, list[float]], comparison: Comparison | None = None
    ) -> tuple[list[float], list[bool]]:
        """Returns the fused log-probability of the token that follows in each step, and whether it is the best token.

        All of main's vocabulary is fused, which takes longer than `logprobs_of`.

        Args:
            steps: The steps.
            known: As for `logprobs_of`.
            comparison: As for `logprobs_of`.
        """
        fused = self._fusion.fuse(self._weighed_over(steps, known, comparison))  # [steps, main's vocabulary]
        follows = torch.tensor(steps.token_ids, device=fused.device)
        own = fused.gather(1, follows[:, None])[:, 0]
        return own.tolist(), (places_of_largest(fused) == follows).tolist()

    def _weighed_over(
        self, steps: GivenSteps, known: dict[int, list[float]], comparison: Comparison | None = None
    ) -> StepInputs:
        """Returns what to fuse in each step of given texts, and brings their records up to date."""
        speaking = self._heard_in(steps)
        if comparison is None:
            comparison = self.compare(steps.logprobs, speaking, steps.heard)
        records = [known.get(text, self.first()) for text in steps.texts]
        if comparison is not None and self.learns:
            gained = (comparison.relative(steps.token_ids) * speaking).tolist()
            records = self._records(gained, steps.texts, known)
        record = torch.tensor(records, dtype=torch.float32)
        inputs = WeighingInputs(steps.logprobs, speaking, record, comparison, steps.prompts)
        return self._weighed(inputs, steps.heard)

    def _records(
        self, gained: Sequence[Sequence[float]], texts: Sequence[int], known: dict[int, list[float]]
    ) -> list[list[float]]:
        """Returns the record before each step, and updates those of the texts; `gained` is told after each step."""
        found = []
        for text, new in zip(texts, gained, strict=True):
            found.append(known.get(text, self.first()))
            known[text] = self.after(found[-1], new)
        return found

    def _heard_in(self, steps: GivenSteps) -> torch.Tensor:
        """Returns which members speak and are asked, bool [steps, members]."""
        main = steps.logprobs[self._main]
        if self._gate is None or main is None:
            return steps.speaking
        asked = self._gate.opens(main)[:, None].expand_as(steps.speaking).clone()
        asked[:, self._main] = True
        return steps.speaking & asked
