"""How many examples and seeds tests try: HYPOTHESIS_PROFILE says `everyday` or `thorough`."""

import os

from hypothesis import settings

ALL = 100  # hypothesis's own default, which a thorough run has

settings.register_profile("everyday", max_examples=ALL // 5)
settings.register_profile("thorough", max_examples=ALL)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "everyday"))


def examples(thorough: int) -> int:
    """As many of a test's examples as the profile has of the usual ones; a few at least."""
    return min(thorough, max(10, thorough * settings.default.max_examples // ALL))


def seeds(thorough: int) -> range:
    """The seeds that a test of random answers tries: all in a thorough run, a third of them in others."""
    return range(thorough if settings.default.max_examples == ALL else max(1, thorough // 3))
