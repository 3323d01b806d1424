"""The answer that most answers come to."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deepen_core.voting.choice import Choice, checked_weights, chosen
from deepen_core.voting.extraction import Extract, extractor
from deepen_core.voting.likelihood import Likelihood


def majority_vote(
    texts: Sequence[str],
    *,
    extract: Extract = "short",
    weights: Sequence[float] | None = None,
    likelihood: Likelihood | None = None,
) -> Choice:
    """Chooses the answer with the largest weight of texts that come to it (self-consistency, arXiv 2203.11171).

    The answers of texts are compared, not the texts: a sum that was found in two ways counts twice. Of the texts that
    come to the chosen answer, or to one of several with the same weight, the likeliest is chosen, or the first without
    `likelihood`. Texts without an answer have no vote; if none has an answer, all are equal.

    Args:
        texts: The answers.
        extract: See `extractor`.
        weights: How much each text counts; equal if None.
        likelihood: How likely texts are; called at most once, with the different texts among which it decides.

    Raises:
        SamplingError: If there are no texts, for weights that do not fit them, or for an unknown extractor.
    """
    counts, read = checked_weights(weights, texts), extractor(extract)
    answers = [read(text) for text in texts]
    cast: dict[str, list[float]] = {}
    for answer, count in zip(answers, counts, strict=True):
        if answer is not None:
            cast.setdefault(answer, []).append(count)
    totals = {answer: math.fsum(given) for answer, given in cast.items()}
    scores = [0.0 if answer is None else totals[answer] for answer in answers]
    top = max(scores)
    best = [place for place, score in enumerate(scores) if score == top]
    place = best[0] if likelihood is None else _likeliest(best, texts, likelihood)
    return chosen("majority", place, texts, answers, scores, counts)


def _likeliest(places: Sequence[int], texts: Sequence[str], likelihood: Likelihood) -> int:
    """Returns the first place of the likeliest text at some places."""
    different = list(dict.fromkeys(texts[place] for place in places))
    if len(different) == 1:
        return places[0]
    known = dict(zip(different, likelihood(different), strict=True))
    return max(places, key=lambda place: known[texts[place]])
