"""How likely members find prompts: what some policies weigh them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

WEIGHTS_VERSION = 3
"""Of the formulas by which policies weigh members. Raise it with each change: old results must not pass for new."""


@dataclass(frozen=True)
class PromptLikelihood:
    """How likely each member finds a prompt.

    Attributes:
        nats: Each member's log-likelihood of a byte, on average, in nats; 0 for all if not every member's is known.
        bytes: Number of bytes that it is the mean of, the least of all members; 0 if nothing is known.
    """

    nats: tuple[float, ...]
    bytes: float

    @classmethod
    def unknown(cls, members: int) -> PromptLikelihood:
        """Returns that of a prompt of which nothing is known."""
        return cls((0.0,) * members, 0.0)


@dataclass(frozen=True)
class PromptLikelihoods:
    """Those of the prompts of some sequences.

    Attributes:
        nats: float32 [sequences, members] on the CPU: in nats a byte, minus infinity for a member that was dropped.
        bytes: float32 [sequences] on the CPU.
    """

    nats: torch.Tensor
    bytes: torch.Tensor

    @classmethod
    def of(cls, found: Sequence[PromptLikelihood]) -> PromptLikelihoods:
        """Puts those of several prompts together."""
        nats, sizes = [list(one.nats) for one in found], [one.bytes for one in found]
        return cls(torch.tensor(nats, dtype=torch.float32), torch.tensor(sizes, dtype=torch.float32))

    def only(self, places: slice | Sequence[int]) -> PromptLikelihoods:
        """Returns those of some of the sequences."""
        at = places if isinstance(places, slice) else list(places)  # a tuple would count as two dimensions
        return PromptLikelihoods(self.nats[at], self.bytes[at])

    def over(self, span: float) -> torch.Tensor:
        """Returns the log-likelihoods (nats) of a text of so many bytes, as likely as the prompt.

        A shorter prompt counts as itself: a word or two say little about who knows such texts.

        Args:
            span: Number of bytes, at least 1.

        Returns:
            float32 [sequences, members].
        """
        return self.nats * self.bytes.clamp(1.0, span)[:, None]
