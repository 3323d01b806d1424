"""What the members say in a step, over columns that all of them can know: how they are compared token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

_LEAST, _MOST = -5.0, 5.0  # nats that one token counts at most


@dataclass(frozen=True)
class Comparison:
    """The members' distributions over the columns that all of them can know, in the sequences where several speak.

    Attributes:
        main: The number of the member whose vocabulary is used.
        told: Each member's mass by column [lines, known], summing to one in each line; main's own where a member
            abstains, and None for members that abstain in all lines.
        line_of: The line of each sequence, int64 [sequences] on the CPU; -1 for sequences in which main speaks alone.
        column_of: The column of each of main's tokens, int64 [main's vocabulary]; from `known` on, columns that not all
            members can know.
    """

    main: int
    told: Sequence[torch.Tensor | None]
    line_of: torch.Tensor
    column_of: torch.Tensor

    @property
    def own(self) -> torch.Tensor:
        """Main's mass by column [lines, known]."""
        own = self.told[self.main]
        assert own is not None, "main never abstains"
        return own

    def by_member(self, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Returns a number for each member in each sequence: 0 where main speaks alone, or the member never speaks.

        Args:
            measure: From a member's mass by column [lines, known] to numbers [lines].

        Returns:
            float32 [sequences, members] on the CPU.
        """
        found = torch.zeros(len(self.line_of), len(self.told), dtype=torch.float32)
        places = (self.line_of >= 0).nonzero()[:, 0]
        for member, mass in enumerate(self.told):
            if mass is not None and len(places):
                found[places, member] = measure(mass).cpu()[self.line_of[places]]
        return found

    @cached_property
    def entropies(self) -> torch.Tensor:
        """Entropies of the members' masses in nats, as `by_member` has them; found once for all that asks for them."""
        return self.by_member(entropy)

    def only(self, places: torch.Tensor) -> Comparison:
        """Returns the comparison for some of the sequences, in all of which several members speak.

        Args:
            places: int64 [selected sequences] on the CPU.
        """
        lines = self.line_of[places]
        counted = torch.arange(len(lines))
        if len(lines) == len(self.own) and torch.equal(lines, counted):
            return Comparison(self.main, self.told, counted, self.column_of)
        told = [None if mass is None else mass[lines.to(mass.device)] for mass in self.told]
        return Comparison(self.main, told, counted, self.column_of)

    def relative(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Returns how much more probable each member finds main's tokens than main does.

        Args:
            token_ids: The token of each sequence.

        Returns:
            Log-likelihood ratios in nats, float32 [sequences, members] on the CPU, limited to 5 either way; 0 for main,
            for members that abstain, and for tokens that not all members can know.
        """
        found = torch.zeros(len(self.line_of), len(self.told), dtype=torch.float32)
        places = (self.line_of >= 0).nonzero()[:, 0]
        if not len(places):
            return found
        own = self.own
        lines = self.line_of[places].to(own.device)
        columns = self.column_of[torch.tensor(list(token_ids))[places].to(own.device)]  # [lines]
        inside = columns.clamp_max(own.shape[1] - 1)
        masses = [own if mass is None else mass for mass in self.told]
        logs = torch.stack([mass[lines, inside] for mass in masses], dim=1).log()  # [lines, members]
        ratios = (logs - logs[:, self.main, None]).nan_to_num(0.0).clamp(_LEAST, _MOST)
        found[places] = torch.where((columns < own.shape[1])[:, None], ratios, 0.0).cpu()
        return found


def entropy(mass: torch.Tensor) -> torch.Tensor:
    """Returns the entropy in nats of distributions [lines, columns]."""
    terms: torch.Tensor = torch.special.entr(mass)
    return terms.sum(-1)
