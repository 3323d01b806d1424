"""Weights that were fitted on examples, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from typing_extensions import Self

from deepen_core.errors import EvaluationError

By = Literal["score", "likelihood"]
FittedPolicy = Literal["static", "perplexity"]


def weights_text(weights: Sequence[float]) -> str:
    """Returns weights as one text, such as "0.7,0.3"."""
    return ",".join(f"{weight:.4g}" for weight in weights)


@dataclass(frozen=True)
class FittedWeights:
    """Weights, and what they were fitted on.

    Attributes:
        members: The members' names.
        main: The name of the main member.
        fusion: The name of the strategy.
        weights: One number per member, summing to one.
        by: What was best: "score", the share of right answers, or "likelihood", the bits a byte of right answers. Open
            questions are answered right if greedy decoding writes just the answer given, for which it is read and
            nothing generated. For exercises, and for questions where greedy decoding writes less than half as many as
            the best member answers right alone, the share is the mean of the members' own shares by their weights.
        tasks: Names of the tasks.
        value: What it came to: a share, or bits.
        equal_value: What equal weights come to.
        alone_value: What main alone comes to.
        policy: "static", or "perplexity": the weights are the shares that this policy starts from, and `equal_value` is
            what it comes to from equal ones.
        by_prompt: What the policy "perplexity" comes to, where its shares were asked for and static weights, which
            these are, are better.
    """

    members: list[str]
    main: str
    fusion: str
    weights: list[float]
    by: By
    tasks: list[str]
    value: float
    equal_value: float
    alone_value: float
    policy: FittedPolicy = "static"
    by_prompt: float | None = None

    @property
    def option(self) -> list[float] | str:
        """What to give to `Ensemble.load` as `weights`: numbers, or the policy with its shares."""
        return self.weights if self.policy == "static" else f"{self.policy}:{self.text}"

    @property
    def argument(self) -> str:
        """The same for `--weights` of the command line."""
        return self.option if isinstance(self.option, str) else self.text

    @property
    def fitted_for(self) -> FittedPolicy:
        """The policy that they were asked for."""
        return "static" if self.policy == "static" and self.by_prompt is None else "perplexity"

    @property
    def tells_nothing(self) -> bool:
        """Whether nothing is right with these weights, nor with equal ones, nor by main alone."""
        return self.by == "score" and not (self.value or self.equal_value or self.alone_value)

    @property
    def text(self) -> str:
        """The weights as one text, such as "0.7,0.3"."""
        return weights_text(self.weights)

    def save(self, path: str | Path) -> None:
        """Saves them as JSON.

        Raises:
            EvaluationError: If the file cannot be written.
        """
        try:
            Path(path).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as problem:
            raise EvaluationError(f"The weights cannot be saved: {problem}") from problem

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Loads what `save` saved.

        Raises:
            EvaluationError: If the file cannot be read, or holds something else.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as problem:
            raise EvaluationError(f"{path} does not hold fitted weights: {problem}") from problem
