"""How well each member predicts the tokens of main that are chosen in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

_LEAST, _MOST = -5.0, 5.0  # nats that one token counts at most


@dataclass
class _Compared:
    places: torch.Tensor
    told: Sequence[torch.Tensor | None]
    column_of: torch.Tensor
    known: int


@dataclass(frozen=True)
class Predictions:
    """Filled by a strategy that compares members by column, and read once tokens are chosen.

    Attributes:
        main: The number of the member whose vocabulary is used.
        sequences: Number of sequences in the step.
        members: Number of members.
        places: Which of them the strategy is looking at, int64 [looked at] on the CPU; None for all.
    """

    main: int
    sequences: int
    members: int
    places: torch.Tensor | None = None
    _parts: list[_Compared] = field(default_factory=list)

    def only(self, places: torch.Tensor) -> Predictions:
        """Returns the same for some of the sequences that are looked at."""
        chosen = places if self.places is None else self.places[places]
        return Predictions(self.main, self.sequences, self.members, chosen, self._parts)

    def add(self, told: Sequence[torch.Tensor | None], column_of: torch.Tensor, known: int) -> None:
        """Adds what members say.

        Args:
            told: Each member's mass by column [sequences looked at, known]; None for members that abstain.
            column_of: The column of each of main's tokens, int64 [main's vocabulary].
            known: Number of columns that all members can know.
        """
        places = torch.arange(self.sequences) if self.places is None else self.places
        self._parts.append(_Compared(places, told, column_of, known))

    def relative(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Returns how much more probable each member finds main's chosen tokens than main does.

        Args:
            token_ids: The token of each sequence of the step.

        Returns:
            Log-likelihood ratios in nats, float32 [sequences, members] on the CPU, limited to 5 either way; 0 for main,
            for members that abstain, and for tokens that not all members can know.
        """
        found = torch.zeros(self.sequences, self.members)
        chosen = torch.tensor(list(token_ids))
        for part in self._parts:
            columns = part.column_of[chosen[part.places].to(part.column_of.device)]  # [sequences looked at]
            inside = columns.clamp_max(part.known - 1)[:, None]
            own = part.told[self.main]
            assert own is not None, "main never abstains"
            masses = [own if mass is None else mass for mass in part.told]
            logs = torch.cat([mass.gather(1, inside) for mass in masses], dim=1).log()  # [sequences looked at, members]
            ratios = (logs - logs[:, self.main, None]).nan_to_num(0.0).clamp(_LEAST, _MOST)
            found[part.places] = torch.where((columns < part.known)[:, None], ratios, 0.0).cpu()
        return found
