"""Where members other than main are asked: one small class per rule."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class Gate(ABC):
    """Decides in each step from main's distribution alone whether the other members are run."""

    @abstractmethod
    def opens(self, logprobs: torch.Tensor) -> torch.Tensor:
        """Returns in which sequences the other members are asked; in the others main decides alone.

        Args:
            logprobs: Main's log-probabilities [sequences, vocabulary], float32.

        Returns:
            bool [sequences] on the CPU.
        """
        ...

    @abstractmethod
    def describe(self) -> str:
        """Returns the rule in a few words, for reports."""
        ...


class TopProbabilityGate(Gate):
    """Asks the others where main gives its most probable token less than a threshold.

    Where main is sure, the others seldom change its choice, and where they do it is often for the worse: they speak of
    tokens that are cut otherwise than theirs (SAFE, arXiv 2510.15346, section 3).

    Args:
        threshold: A probability. At 1 the others are always asked, at 0 never.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def opens(self, logprobs: torch.Tensor) -> torch.Tensor:
        """See `Gate.opens`."""
        return (logprobs.amax(-1).exp() < self._threshold).cpu()

    def describe(self) -> str:
        """See `Gate.describe`."""
        return f"main's top probability below {self._threshold:g}"


def gate_of(threshold: float | None) -> Gate | None:
    """Returns the gate of a threshold; None for none, and for 1, at which the others are always asked."""
    return None if threshold is None or threshold == 1 else TopProbabilityGate(threshold)
