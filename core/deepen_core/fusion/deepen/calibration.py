"""How sharp the rows of a relative space are, and the temperature for a wanted sharpness."""

from __future__ import annotations

import math

import torch

_STEPS = 20
_MAX_TEMPERATURE = 1e5


def self_mass(logits: torch.Tensor, columns: torch.Tensor, temperature: float) -> float:
    """Returns the median mass of the rows of `logits` on their own columns.

    Not the mean: tokens that training never met have nearly equal embeddings, share their mass at any temperature, and
    would drive the temperature far beyond what the others need.

    Args:
        logits: `l2norm(cos)` of some anchors [rows, columns]; -infinity where a column does not count.
        columns: Each of these anchors' own column [rows].
        temperature: Factor of the logits.
    """
    mass = torch.softmax(temperature * logits, dim=-1)
    return float(mass.gather(1, columns[:, None]).median())


def effective_support(logits: torch.Tensor, temperature: float) -> float:
    """Returns the median number of columns that a row spreads over: the exponential of its entropy.

    Args:
        logits: As for `self_mass`.
        temperature: Factor of the logits.
    """
    mass = torch.softmax(temperature * logits, dim=-1)
    return float(torch.special.entr(mass).sum(-1).median().exp())


def calibrate_temperature(logits: torch.Tensor, columns: torch.Tensor, target: float) -> float:
    """Returns the temperature at which anchors keep `target` of their mass for themselves, by bisection.

    Args:
        logits: As for `self_mass`.
        columns: As for `self_mass`.
        target: Median self-mass, between 0 and 1. If most embeddings of a vocabulary are equal, no temperature reaches
            it; the result is then the largest one tried.
    """
    low, high = 0.0, math.log(_MAX_TEMPERATURE)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if self_mass(logits, columns, math.exp(middle)) < target else (low, middle)
    return math.exp(high)
