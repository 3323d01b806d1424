"""Measured reasons why members may not fuse well, or not answer several requests well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepen_core.results import ONE_AT_A_TIME

_WEAK_SELF_MASS = 0.1
_LENGTH_RATIO = 1.6


def compatibility_warnings(
    names: Sequence[str],
    *,
    self_mass: Sequence[float],
    calibrated: bool,
    bytes_per_token: Sequence[float],
    weights: Sequence[float],
) -> list[str]:
    """Says which numbers speak against fusing these members.

    Args:
        names: The members' names.
        self_mass: Median mass that an anchor keeps for itself in each member's relative space.
        calibrated: Whether temperatures were chosen for a self-mass.
        bytes_per_token: Mean token length of each member on the same text.
        weights: Members of weight zero are left out.
    """
    counted = [i for i, w in enumerate(weights) if w > 0]
    if len(counted) < 2:
        return []
    remedy = "No temperature sharpens embeddings so much alike." if calibrated else 'Use temperature="auto".'
    found = [
        f"The relative space of {names[i]!r} carries little signal: an anchor keeps {self_mass[i]:.3f} of its mass "
        f"in the median, where {_WEAK_SELF_MASS} is the least that fusion can build on. {remedy}"
        for i in counted
        if self_mass[i] < _WEAK_SELF_MASS
    ]
    short = min(counted, key=lambda i: bytes_per_token[i])
    long = max(counted, key=lambda i: bytes_per_token[i])
    if bytes_per_token[long] > _LENGTH_RATIO * bytes_per_token[short]:
        found.append(
            f"Tokens differ much in length ({names[long]!r}: {bytes_per_token[long]:.1f} bytes, {names[short]!r}: "
            f"{bytes_per_token[short]:.1f}, a ratio of {bytes_per_token[long] / bytes_per_token[short]:.1f} where "
            f"{_LENGTH_RATIO} is the most without a warning), so the members predict different things at one step, and "
            "fusing them may be worse than the better one alone."
        )
    return found


def fusion_limits(main: str, unshared: Mapping[str, float]) -> list[str]:
    """Says what fusion cannot do with these members, in numbers.

    Args:
        main: Name of the main member.
        unshared: For each member that counts, the share of its tokens on a sample text that some other one lacks.
    """
    if len(unshared) < 2:
        return []
    found = [
        f"{share:.0%} of the tokens of {name!r} on a sample of prose and code are tokens that not all members have: of "
        "such a token the ensemble takes in only its beginning, up to the longest shared token."
        for name, share in unshared.items()
    ]
    others = [name for name in unshared if name != main]
    found.append(
        f"What is said is always a token of {main!r}. Its control tokens, other than those that end a text, are for it "
        f"alone to decide: {' and '.join(map(repr, others))} cannot speak for or against them."
    )
    found.append(
        "The average favours what several members find probable at once. What one member alone knows prevails only "
        "where it is surer than the others together by weight; where they are sure of something else, it is outvoted."
    )
    return found


def batching_warnings(batching: Mapping[str, str]) -> list[str]:
    """Says which members hold up requests that are asked together.

    Args:
        batching: `Member.batching` of each member that is run, by name.
    """
    return [
        f"Member {name!r} runs {way}. In it the requests of a batch run one after another, so a batch of 8 is no "
        "faster than 8 calls. Answers are the same; to serve many requests at once, take another model in its place."
        for name, way in batching.items()
        if way.startswith(ONE_AT_A_TIME)
    ]
