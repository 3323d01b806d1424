"""Several answers to one question, of which one is chosen: plain functions on texts, whatever wrote them.

By majority of what the answers come to, by what they have most in common (minimum Bayes risk), or by likelihood.
"""

from deepen_core.voting.ballot import Ballot, By
from deepen_core.voting.choice import Candidate, Choice
from deepen_core.voting.extraction import Extract, extractor
from deepen_core.voting.likelihood import likeliest
from deepen_core.voting.majority import majority_vote
from deepen_core.voting.risk import chrf, minimum_bayes_risk

__all__ = [
    "Ballot",
    "By",
    "Candidate",
    "Choice",
    "Extract",
    "chrf",
    "extractor",
    "likeliest",
    "majority_vote",
    "minimum_bayes_risk",
]
