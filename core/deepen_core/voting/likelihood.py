"""Best of several answers by likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from deepen_core.voting.choice import Choice, checked_weights, chosen
from deepen_core.voting.extraction import Extract, extractor

Likelihood = Callable[[Sequence[str]], Sequence[float]]
"""Returns how likely each of some different texts is; the higher the likelier, -inf for one without a likelihood."""


def likeliest(texts: Sequence[str], likelihood: Likelihood, *, extract: Extract = "short") -> Choice:
    """Chooses the likeliest text, the first of equally likely ones (best of n).

    Args:
        texts: The answers.
        likelihood: Called once with all different texts. Divide by the length in bytes: the likelihood of a whole text
            falls with every token, so that the shortest would win.
        extract: See `extractor`; only tells which answers agree with the chosen one.

    Raises:
        SamplingError: If there are no texts, or for an unknown extractor.
    """
    weights, read = checked_weights(None, texts), extractor(extract)
    different = list(dict.fromkeys(texts))
    known = dict(zip(different, likelihood(different), strict=True))
    values = [known[text] for text in texts]
    scores = [value if math.isfinite(value) else None for value in values]
    place = max(range(len(values)), key=values.__getitem__)
    return chosen("likelihood", place, texts, [read(text) for text in texts], scores, weights)
