"""How one of several answers is chosen: the options of a vote, checked before anything is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from deepen_core.errors import SamplingError
from deepen_core.voting.choice import Choice
from deepen_core.voting.extraction import Extract, extractor
from deepen_core.voting.likelihood import Likelihood, likeliest
from deepen_core.voting.majority import majority_vote
from deepen_core.voting.risk import Utility, chrf, minimum_bayes_risk

By = Literal["majority", "mbr", "likelihood"]


@dataclass(frozen=True)
class Ballot:
    """How to choose.

    Attributes:
        by: "majority" (`majority_vote`), "mbr" (`minimum_bayes_risk`) or "likelihood" (`likeliest`).
        extract: What answers are compared by, see `extractor`.
        utility: How good an answer is if another is right, for "mbr"; chrF if None.
    """

    by: By = "majority"
    extract: Extract = "short"
    utility: Utility | None = None

    def __post_init__(self) -> None:
        """Rejects options that cannot be followed.

        Raises:
            SamplingError: For an unknown way to choose or extractor, a utility that nothing uses, or if chrF is needed
                and not installed.
        """
        if self.by not in get_args(By):
            raise SamplingError(f"Answers are chosen by {', '.join(get_args(By))}, not by {self.by!r}.")
        if self.utility is not None and self.by != "mbr":
            raise SamplingError(f"A utility is for by='mbr', not for by={self.by!r}: leave it out.")
        if self.by == "mbr" and self.utility is None:
            chrf()
        extractor(self.extract)

    def choose(
        self, texts: Sequence[str], likelihood: Likelihood | None = None, weights: Sequence[float] | None = None
    ) -> Choice:
        """Chooses one of some texts.

        Args:
            texts: The texts.
            likelihood: How likely texts are; needed by "likelihood", and breaks ties of "majority".
            weights: How much each text counts; equal if None.

        Raises:
            SamplingError: If there are no texts, or for weights that do not fit them or this way to choose.
        """
        if self.by == "mbr":
            return minimum_bayes_risk(texts, self.utility, weights=weights, extract=self.extract)
        if self.by == "majority":
            return majority_vote(texts, extract=self.extract, weights=weights, likelihood=likelihood)
        if likelihood is None or weights is not None:
            raise SamplingError("by='likelihood' needs to know how likely answers are, and has no use for weights.")
        return likeliest(texts, likelihood, extract=self.extract)
