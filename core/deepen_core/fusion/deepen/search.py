"""The way back from the relative space: probabilities over main's tokens whose projection is near a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from deepen_core.config import FusionConfig, SearchName

_TINY = 1e-20  # keeps columns that nothing projects to out of the quotient


class Rows(Protocol):
    """Rows of a relative matrix `R`, in any storage. Results are new tensors, which a search may overwrite."""

    def project(self, probs: torch.Tensor) -> torch.Tensor:
        """`p R`, [..., tokens] -> [..., columns]."""
        ...

    def lift(self, columns: torch.Tensor) -> torch.Tensor:
        """`R x`, [..., columns] -> [..., tokens]."""
        ...


def _ratio(target: torch.Tensor, probs: torch.Tensor, rows: Rows) -> torch.Tensor:
    """`q / (p R)`, [..., columns]."""
    projected = rows.project(probs).clamp_min_(_TINY)
    return torch.div(target, projected, out=projected)


@dataclass(frozen=True)
class DenseRows:
    """A whole relative matrix [tokens, columns]."""

    matrix: torch.Tensor

    def project(self, probs: torch.Tensor) -> torch.Tensor:
        """`p R`, [..., tokens] -> [..., columns]."""
        return probs @ self.matrix

    def lift(self, columns: torch.Tensor) -> torch.Tensor:
        """`R x`, [..., columns] -> [..., tokens]."""
        return columns @ self.matrix.T


def expectation_maximisation(probs: torch.Tensor, rows: Rows, target: torch.Tensor, steps: int) -> torch.Tensor:
    """`p <- p * R (q / (p R))`, repeated: the KL divergence of `p R` from the target `q` never rises.

    Args:
        probs: Start [..., tokens], summing to one.
        rows: The relative rows of these tokens.
        target: `q` [..., columns], summing to one.
        steps: Iterations.
    """
    for _ in range(steps):
        probs = rows.lift(_ratio(target, probs, rows)).mul_(probs)
    return probs


def adamw(
    logits: torch.Tensor,
    rows: Rows,
    target: torch.Tensor,
    learning_rate: float,
    steps: int,
    rest: torch.Tensor | None = None,
) -> torch.Tensor:
    """The paper's search: AdamW on the logits, with the gradient in closed form.

    The loss is `mean(q * (log q - log(p R)))` over all columns, so the gradient is
    `-(p / columns) * (R (q / (p R)) - 1)`, as `q` sums to one. The mean is not just a factor: relative to AdamW's eps
    it decides how far improbable tokens move. Betas (0.9, 0.999), eps 1e-8, weight decay 0.01; the learning rate
    follows a cosine of period 10 down to a quarter.

    Args:
        logits: Start [..., tokens]; entries of -infinity stay.
        rows: The relative rows of these tokens, followed by those in `rest`.
        target: `q` [..., columns].
        learning_rate: The trust radius; a logit moves at most about 4.5 times as much in 5 steps.
        steps: Iterations.
        rest: Exponentials of the logits of tokens that do not move [..., others].
    """
    columns, tokens = target.shape[-1], logits.shape[-1]
    still = logits[..., :0] if rest is None else rest.sum(-1, keepdim=True)  # [..., 0 or 1]
    beta1, beta2, eps, decay = 0.9, 0.999, 1e-8, 0.01
    first, second = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(steps):
        rate = learning_rate * (0.25 + 0.75 * (1 + math.cos(math.pi * step / 10)) / 2)
        shares = torch.softmax(torch.cat([logits, still.log()], dim=-1), dim=-1)
        probs = shares[..., :tokens]
        every = (
            probs if rest is None else torch.cat([probs, rest * (shares[..., -1:] / still.clamp_min(_TINY))], dim=-1)
        )
        lifted = rows.lift(_ratio(target, every, rows))[..., :tokens]
        gradient = -(probs / columns) * (lifted - 1.0)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient.square()
        mean = first / (1 - beta1 ** (step + 1))
        scale = (second / (1 - beta2 ** (step + 1))).sqrt() + eps
        logits = logits * (1 - rate * decay) - rate * mean / scale
    return logits


Search = Callable[
    [torch.Tensor, torch.Tensor, Rows, torch.Tensor, FusionConfig], tuple[torch.Tensor, torch.Tensor | None]
]
"""A search as strategies run it.

Its arguments are the start as log-probabilities of the tokens that move individually [..., tokens], the start as
probabilities of these and of all others by their column [..., tokens + gathered], the relative rows, the target and the
options. It returns new log-probabilities of the former, not normalised, and by how much the latter move, as logarithms
[..., gathered]; None if they do not.
"""


def _em(
    own: torch.Tensor, start: torch.Tensor, rows: Rows, target: torch.Tensor, config: FusionConfig
) -> tuple[torch.Tensor, torch.Tensor | None]:
    tokens = own.shape[-1]
    end = expectation_maximisation(start, rows, target, config.steps)
    gathered = start[..., tokens:]
    factor = torch.where(gathered > 0, end[..., tokens:] / gathered, 1.0)
    return end[..., :tokens].log(), factor.log()


def _adamw(
    own: torch.Tensor, start: torch.Tensor, rows: Rows, target: torch.Tensor, config: FusionConfig
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return adamw(own, rows, target, config.trust_radius, config.steps, start[..., own.shape[-1] :]), None


SEARCHES: dict[SearchName, Search] = {"em": _em, "adamw": _adamw}
"""The search for each value of `FusionConfig.search`."""


def adamw_search(
    main_logits: torch.Tensor, matrix: torch.Tensor, target: torch.Tensor, learning_rate: float, steps: int
) -> torch.Tensor:
    """The paper's search with a whole relative matrix.

    Args:
        main_logits: Main's logits [vocabulary], of any floating type.
        matrix: Main's relative matrix [vocabulary, anchors].
        target: The weighted average in the relative space [anchors].
        learning_rate: 0.15 in the paper.
        steps: 5 in the paper.

    Returns:
        Logits, float32 [vocabulary].
    """
    return adamw(main_logits.float(), DenseRows(matrix), target, learning_rate, steps)


def em_search(main_probs: torch.Tensor, matrix: torch.Tensor, target: torch.Tensor, steps: int) -> torch.Tensor:
    """Expectation maximisation with a whole relative matrix.

    Args:
        main_probs: Main's probabilities [vocabulary].
        matrix: Main's relative matrix [vocabulary, anchors].
        target: The weighted average in the relative space [anchors].
        steps: Iterations.

    Returns:
        Probabilities [vocabulary].
    """
    return expectation_maximisation(main_probs, DenseRows(matrix), target, steps)
