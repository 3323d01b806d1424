"""What a vote comes to: the chosen answer, and what each candidate got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepen_core.errors import SamplingError
from deepen_core.results import Generation


@dataclass(frozen=True)
class Candidate:
    """An answer that could be chosen.

    Attributes:
        text: The whole answer.
        answer: What it comes to, by the extractor; None if nothing was found in it.
        score: By majority, the weight of all candidates with its answer; by minimum Bayes risk, its mean utility; by
            likelihood, nats a byte, or None for a text without a likelihood: it is empty, or too long for a member.
        source: What gave the answer, if known, such as the name of a member.
        generation: The answer as the engine returned it, if it did.
    """

    text: str
    answer: str | None
    score: float | None
    source: str = ""
    generation: Generation | None = None


@dataclass(frozen=True)
class Choice:
    """The result of a vote.

    Attributes:
        by: How it was chosen: "majority", "mbr" or "likelihood".
        place: The number of the chosen candidate.
        candidates: All candidates, in their order.
        share: The share of the candidates, by weight, that come to the chosen answer; one without an answer agrees with
            itself only.
    """

    by: str
    place: int
    candidates: tuple[Candidate, ...]
    share: float

    @property
    def chosen(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.place]

    @property
    def text(self) -> str:
        """The text of the chosen candidate."""
        return self.chosen.text

    @property
    def answer(self) -> str | None:
        """What the chosen candidate comes to."""
        return self.chosen.answer

    @property
    def votes(self) -> dict[str, int]:
        """How many candidates come to each answer, the most frequent first; those without an answer do not count."""
        answers = [candidate.answer for candidate in self.candidates if candidate.answer is not None]
        counts = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
        return dict(sorted(counts.items(), key=lambda counted: -counted[1]))


def chosen(
    by: str,
    place: int,
    texts: Sequence[str],
    answers: Sequence[str | None],
    scores: Sequence[float | None],
    weights: Sequence[float],
) -> Choice:
    """Returns a choice among some texts.

    Args:
        by: See `Choice`.
        place: See `Choice`.
        texts: The texts.
        answers: What each comes to.
        scores: See `Candidate.score`.
        weights: How much each counts.
    """
    agree = [
        weight
        for number, (answer, weight) in enumerate(zip(answers, weights, strict=True))
        if number == place or (answer is not None and answer == answers[place])
    ]
    candidates = tuple(Candidate(*each) for each in zip(texts, answers, scores, strict=True))
    return Choice(by, place, candidates, math.fsum(agree) / math.fsum(weights))


def checked_weights(weights: Sequence[float] | None, texts: Sequence[str]) -> list[float]:
    """Returns how much each of some texts counts; 1 each if not given.

    Raises:
        SamplingError: If there are no texts, not one weight for each, a weight is negative or not finite, or all are 0.
    """
    if not texts:
        raise SamplingError("There are no answers to choose from: give at least one.")
    if weights is None:
        return [1.0] * len(texts)
    if len(weights) != len(texts):
        raise SamplingError(f"There are {len(weights)} weights for {len(texts)} answers: give one for each.")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise SamplingError(f"The weights are {list(weights)}: they must be finite and not negative, nor all 0.")
    return [float(weight) for weight in weights]
