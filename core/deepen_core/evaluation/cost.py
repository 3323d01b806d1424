"""What ways to answer cost: how often members other than main are asked, and time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deepen_core.evaluation.generation import Answer


@dataclass(frozen=True)
class Cost:
    """What the answers to open questions have cost in one way to answer.

    Attributes:
        label: Its name in the table.
        main: The name of the main member; of the member itself where it answers alone.
        tokens: Number of tokens that main has chosen.
        asked: The share of steps in which another member is asked, in the mean of the others; 1 without a gate, except
            in the middle of a character.
        seconds: Time for each token while several questions are answered at once; None if it was not measured.
    """

    label: str
    main: str
    tokens: int
    asked: float
    seconds: float | None


def cost(label: str, main: str, answers: Iterable[Answer]) -> Cost:
    """Sums up what answers have cost.

    Args:
        label: The way in which they were answered.
        main: The name of the main member.
        answers: The answers.
    """
    every = list(answers)
    tokens = sum(answer.steps[main] for answer in every)
    others = [name for name in every[0].steps if name != main] if every else []
    steps = sum(answer.steps[name] for answer in every for name in others)
    times = [answer.seconds for answer in every if answer.seconds is not None]
    measured = sum(times) / tokens if tokens and len(times) == len(every) else None
    return Cost(label, main, tokens, steps / (tokens * len(others)) if tokens and others else 0.0, measured)
