"""How sharp the rows of a relative space are, and the temperature that makes them so."""

from __future__ import annotations

import math

import torch

_STEPS = 20
_MAX_TEMPERATURE = 1e5


def self_mass(logits: torch.Tensor, columns: torch.Tensor, temperature: float) -> float:
    """Median mass of the rows of `logits` on their own columns.

    Not the mean: tokens that training never met have nearly equal embeddings, share their mass at any temperature, and
    would drive it far beyond what the others need.

    Args:
        logits: `l2norm(cos)` of some anchors [rows, columns]; -infinity where a column does not count.
        columns: The column of each of these anchors itself [rows].
        temperature: What multiplies the logits.
    """
    mass = torch.softmax(temperature * logits, dim=-1)
    return float(mass.gather(1, columns[:, None]).median())


def effective_support(logits: torch.Tensor, temperature: float) -> float:
    """Median number of columns that a row spreads over: the exponential of its entropy.

    Args:
        logits: As for `self_mass`.
        temperature: What multiplies the logits.
    """
    mass = torch.softmax(temperature * logits, dim=-1)
    return float(torch.special.entr(mass).sum(-1).median().exp())


def calibrate_temperature(logits: torch.Tensor, columns: torch.Tensor, target: float) -> float:
    """The temperature at which anchors keep `target` of their mass for themselves, by bisection.

    Args:
        logits: As for `self_mass`.
        columns: As for `self_mass`.
        target: Median self-mass, between 0 and 1. A vocabulary of mostly equal embeddings does not reach it at any
            temperature; the result is then the largest tried.
    """
    low, high = 0.0, math.log(_MAX_TEMPERATURE)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if self_mass(logits, columns, math.exp(middle)) < target else (low, middle)
    return math.exp(high)
