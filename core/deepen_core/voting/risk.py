"""The answer that has most in common with the others: minimum Bayes risk, by chrF or another utility."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from deepen_core.errors import SamplingError
from deepen_core.voting.choice import Choice, checked_weights, chosen
from deepen_core.voting.extraction import Extract, extractor

Utility = Callable[[str, str], float]
"""How good a text (the first) is if another (the second) is right; the higher the better."""


def minimum_bayes_risk(
    texts: Sequence[str],
    utility: Utility | None = None,
    *,
    weights: Sequence[float] | None = None,
    extract: Extract = "short",
) -> Choice:
    """Chooses the text with the largest mean utility against the others, the first of equally good ones.

    argmax over h of sum over r other than h of w(r) u(h, r): samples stand for what may be right (Kumar & Byrne 2004;
    Eikema & Aziz 2022, arXiv 2108.04718). A text is not compared with itself, but with those that are equal to it.

    Args:
        texts: The answers.
        utility: chrF by default, which needs the extra `voting`. Called once for each pair of different texts, and for
            a text and itself if it is there twice.
        weights: How much each text counts as what may be right; equal if None.
        extract: See `extractor`; only tells which answers agree with the chosen one.

    Raises:
        SamplingError: If there are no texts, for weights that do not fit them, for an unknown extractor, or if chrF is
            needed and not installed.
    """
    counts, read = checked_weights(weights, texts), extractor(extract)
    measure = chrf() if utility is None else utility
    known: dict[tuple[str, str], float] = {}

    def mean(place: int) -> float:
        others = [number for number in range(len(texts)) if number != place and counts[number] > 0]
        for number in others:
            pair = (texts[place], texts[number])
            if pair not in known:
                known[pair] = float(measure(*pair))
        total = math.fsum(counts[number] for number in others)
        gained = math.fsum(counts[number] * known[texts[place], texts[number]] for number in others)
        return gained / total if others else 0.0

    scores = [mean(place) for place in range(len(texts))]
    place = max(range(len(scores)), key=scores.__getitem__)
    return chosen("mbr", place, texts, [read(text) for text in texts], scores, counts)


def chrf() -> Utility:
    """Returns chrF of sacrebleu with its defaults (character 6-grams, beta 2), from 0 to 100.

    Raises:
        SamplingError: If sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as missing:
        raise SamplingError(
            "chrF needs sacrebleu: pip install 'deepen-integrations[voting]', or give a utility of your own."
        ) from missing
    metric = CHRF()

    def utility(hypothesis: str, reference: str) -> float:
        return float(metric.sentence_score(hypothesis, [reference]).score)

    return utility
