"""Checks of given weights, one number per member."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from deepen_core.config.weights import POLICIES
from deepen_core.errors import ConfigurationError


def policy_and_shares(weights: object) -> tuple[str, list[float] | None]:
    """Returns the name of the policy that some weights stand for, and the members' shares if they are given with it.

    Args:
        weights: The name of a policy, which shares may follow, as in "perplexity:0.9,0.1"; or numbers, which are static
            and are not looked at.

    Raises:
        ConfigurationError: If it is a text and does not begin with the name of a policy, or no numbers follow.
    """
    if not isinstance(weights, str):
        return "static", None
    name, colon, shares = weights.partition(":")
    if name not in POLICIES:
        raise ConfigurationError(
            f"weights is {weights!r}: give one number per member, such as [0.7, 0.3], or the name of a policy: "
            f"{', '.join(POLICIES)}."
        )
    try:
        return name, [float(part) for part in shares.split(",")] if colon else None
    except ValueError:
        raise ConfigurationError(
            f"weights is {weights!r}: give one number per member after the colon, such as {name}:0.7,0.3."
        ) from None


def normalised_weights(weights: Sequence[float], names: Sequence[str]) -> list[float]:
    """Checks weights and scales them to sum to one.

    Args:
        weights: One number per member, none negative, not all zero.
        names: The members' names, for error messages.

    Raises:
        ConfigurationError: If `weights` is not a list of numbers, a weight is negative, NaN or infinite, all are zero,
            or there is not one per member.
    """
    message = f"weights is {weights!r}: give one number per member, such as [0.7, 0.3]."
    if isinstance(weights, (str, bytes, Mapping, AbstractSet)):
        raise ConfigurationError(message)
    try:
        values = [float(w) for w in weights]
    except (TypeError, ValueError, OverflowError, RuntimeError) as problem:
        raise ConfigurationError(message) from problem
    if len(values) != len(names):
        raise ConfigurationError(
            f"{len(values)} weights for {len(names)} members ({', '.join(names)}): give one weight per member."
        )
    wrong = [f"{n}: {w}" for n, w in zip(names, values, strict=True) if not (w >= 0 and math.isfinite(w))]
    if wrong:
        raise ConfigurationError(f"Weights must be finite and not negative, but {', '.join(wrong)}.")
    total = sum(values)
    if not (total > 0 and math.isfinite(total)):
        raise ConfigurationError(f"The weights {values} sum to {total}: at least one must be positive.")
    return [w / total for w in values]
