"""The numbers that are kept of a step of traced requests: small tensors, which become lists where a trace is read.

Lists would make thousands of Python objects, and the garbage collector, which goes through all of them again and again,
runs on the decoding thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from deepen_core.tracing.records import Status

_TOP = 5  # most probable tokens that are kept of each distribution
_LARGE = 8192
"""Size of a vocabulary whose distributions are compared one by one on a CPU, so that they stay in a core's cache: for
32 of 152,000 tokens that took 10 ms rather than 34."""
NO_ID = -1
Top = tuple[list[int], list[float]]
"""Ids or columns and their probabilities, best first."""


@dataclass(frozen=True)
class TopTokens:
    """The most probable tokens of some distributions.

    Attributes:
        ids: Ids or columns, best first, int64 [sequences, at most 5].
        values: Their probabilities, or the logarithms [sequences, at most 5].
        logs: Whether these are logarithms.
    """

    ids: torch.Tensor
    values: torch.Tensor
    logs: bool

    @classmethod
    def of(cls, values: torch.Tensor, *, logs: bool = False) -> TopTokens:
        """Reads them from probabilities [sequences, vocabulary], or from their logarithms."""
        best = values.topk(min(_TOP, values.shape[-1]), dim=-1)
        return cls(best.indices.cpu(), best.values.cpu(), logs)

    @cached_property
    def lines(self) -> list[Top]:
        """Those of each sequence."""
        found = self.values.exp() if self.logs else self.values
        return list(zip(self.ids.tolist(), found.tolist(), strict=True))


@dataclass(frozen=True)
class Compared:
    """How probable the chosen tokens' columns are to a member, and to main, where members are compared.

    Attributes:
        theirs: The member's mass of the columns [sequences].
        ours: Main's.
        known: Whether all members can know the column, bool [sequences].
        lines: The line of each sequence in the comparison, int64 [sequences]; -1 where main speaks alone.
    """

    theirs: torch.Tensor
    ours: torch.Tensor
    known: torch.Tensor
    lines: torch.Tensor

    def probabilities(self, main: torch.Tensor) -> torch.Tensor:
        """Returns what main's probabilities of tokens [sequences] become if the member's columns replace main's."""
        found = torch.where(self.ours > 0, (main * self.theirs / self.ours).clamp_max(1.0), self.theirs)
        found = torch.where(self.known, found, main)  # main alone decides on the rest
        return torch.where(self.lines >= 0, found, torch.nan)


@dataclass(frozen=True)
class Spelled:
    """How probable a member's own tokens are that are spelled like the chosen ones.

    Attributes:
        logprobs: Theirs [sequences].
        exist: Whether there is such a token.
    """

    logprobs: torch.Tensor
    exist: Sequence[bool]

    def probabilities(self, _: torch.Tensor) -> torch.Tensor:
        """Returns them [sequences], not a number where there is no such token."""
        return torch.where(torch.tensor(self.exist), self.logprobs.exp(), torch.nan)


@dataclass
class StepNumbers:
    """The numbers of one step, with a line for each traced sequence, on the CPU; those of a member by its number.

    Attributes:
        l1_distance: Between main's distribution and the fused one [sequences].
        fused: Main's most probable tokens after fusion.
        own: Each member's most probable tokens.
        heard: The most probable columns of each member but main; empty without a comparison.
        weights: The members' weights [sequences, members].
        statuses: What each member that takes part did.
        after: Each member's last id, int64 [sequences, members]; -1 where it has none.
        lines: The line of each sequence in the comparison, int64 [sequences]; -1 where members are not compared.
        tokens: Main's ids that were chosen.
        chosen: Log-probabilities of the chosen tokens [sequences].
        chosen_by_main: The same under main.
        chosen_by_others: The same under the other members that speak.
    """

    l1_distance: torch.Tensor
    fused: TopTokens
    own: Mapping[int, TopTokens]
    heard: Mapping[int, TopTokens]
    weights: torch.Tensor
    statuses: Sequence[Mapping[int, Status]]
    after: torch.Tensor
    lines: torch.Tensor
    tokens: list[int]
    chosen: torch.Tensor | None = None
    chosen_by_main: torch.Tensor | None = None
    chosen_by_others: dict[int, Compared | Spelled] = field(default_factory=dict)

    @cached_property
    def lists(self) -> StepLists:
        """What becomes of the numbers where they are read; after tokens were chosen."""
        assert self.chosen is not None, "tokens were chosen"
        assert self.chosen_by_main is not None, "and main speaks in each step"
        main = self.chosen_by_main.exp()
        return StepLists(
            moved=(self.l1_distance / 2).tolist(),
            weights=(self.weights / self.weights.sum(-1, keepdim=True)).tolist(),
            after=self.after.tolist(),
            compared=(self.lines >= 0).tolist(),
            chosen=self.chosen.exp().tolist(),
            chosen_by_main=main.tolist(),
            chosen_by_others={
                number: [None if math.isnan(value) else value for value in found.probabilities(main).tolist()]
                for number, found in self.chosen_by_others.items()
            },
        )


@dataclass(frozen=True)
class StepLists:
    """The numbers of one step by lines; `moved` and what follows are as in `TraceStep`."""

    moved: list[float]
    weights: list[list[float]]
    after: list[list[int]]
    compared: list[bool]
    chosen: list[float]
    chosen_by_main: list[float]
    chosen_by_others: dict[int, list[float | None]]


def lines_of(values: torch.Tensor | None, places: list[int]) -> torch.Tensor:
    """Returns the lines of some sequences; nothing is copied if these are all."""
    assert values is not None, "main never abstains"
    return values if len(places) == len(values) else values[places]


def l1_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the L1 distances [sequences] of distributions, given as log-probabilities [sequences, vocabulary]."""
    if first.device.type != "cpu" or first.shape[-1] <= _LARGE:
        return first.exp().sub_(second.exp()).abs_().sum(-1).cpu()
    parts = zip(first.split(1), second.split(1), strict=True)
    return torch.cat([one.exp().sub_(other.exp()).abs_().sum(-1) for one, other in parts])


def logprobs_of(logprobs: torch.Tensor | None, places: list[int], tokens: list[int]) -> torch.Tensor:
    """Returns the log-probability of a token in each of some sequences [sequences], on the CPU."""
    assert logprobs is not None, "main never abstains"
    return logprobs[places, tokens].cpu()
