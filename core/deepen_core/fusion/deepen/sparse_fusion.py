"""DeePEn: averages in the relative space, then searches for main's distribution that projects to the average.

Nothing of size vocabulary x anchors is touched per token. Shapes: distributions [sequences, vocabulary]; listed tokens
[sequences, tokens], whose relative rows are [sequences, tokens, entries]; mass [sequences, tokens + gathered columns];
target [sequences, columns]. In each step:

1. List the tokens that matter, each with a relative row of its own: each member's most probable ones, and main's
   counterparts of the tokens that the others favour (their images).
2. Project each member's distribution; tokens that are not listed are summed by column, so that no mass is lost.
3. Average the projections by weight: the target.
4. Search for main's probabilities of its listed tokens whose projection is near the target.
5. Main's other tokens move with their column, if they move at all.
6. Where the two best tokens nearly tie, repeat with the exact rows of the few tokens that decide between them.

Main alone decides on control tokens, which no other member can know: the mass that another member gives to its own goes
to main's distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from deepen_core.fusion.anchors.token_healing import Healing
from deepen_core.fusion.deepen.averaging import AveragingFusion, normalised
from deepen_core.fusion.deepen.search import SEARCHES
from deepen_core.fusion.deepen.sparse_matrix import SparseRows, TokenRows

_CPU_PART = 2**18  # floats of a vocabulary-wide tensor that stay in a core's cache
_GPU_PART = 2**27
# The tail of a row is known to about half a percent of a probability: enough except for ties of probable tokens.
_TIE, _CLEAR = 0.01, 0.1
_WEIGHTY = 0.03  # tokens whose tails decide a tie


@dataclass(frozen=True)
class _Listed:
    """The tokens of a member that have a row of their own in a step.

    Attributes:
        ids: int64 [sequences, tokens].
        live: bool [sequences, tokens]; the other places are padding.
        rows: Their relative rows [sequences, tokens, entries].
    """

    ids: torch.Tensor
    live: torch.Tensor
    rows: SparseRows

    def taken(self, part: slice) -> _Listed:
        """Returns those of some sequences, without needless padding."""
        tokens = max(1, int(self.live[part].sum(-1).amax()))
        return _Listed(self.ids[part, :tokens], self.live[part, :tokens], self.rows.taken(part, tokens))

    def split(self, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Splits probabilities [sequences, vocabulary] into the listed tokens' [sequences, tokens] and the rest."""
        own = probs.gather(-1, self.ids).masked_fill(~self.live, 0.0)
        return own, self.written(probs, torch.zeros_like(own))

    def written(self, values: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Overwrites values [sequences, vocabulary] at the listed tokens with new ones [sequences, tokens]."""
        new = torch.where(self.live, new, values.gather(-1, self.ids))
        # Padding may repeat a token: all of it writes what the first place writes.
        ids, new = (torch.where(self.live, x, x[:, :1]) for x in (self.ids, new))
        return values.scatter_(-1, ids, new)


class DeepenFusion(AveragingFusion):
    """The strategies `"deepen"` (EM search) and `"deepen-paper"` (AdamW search).

    See `AveragingFusion` for the arguments.
    """

    def _combine(
        self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        """Fuses with relative rows for the tokens that matter."""
        main = self._of_main(logprobs)
        # 1) List the tokens that matter; missing rows are built for the whole batch at once.
        listed = [None if p is None else self._probable(i, p) for i, p in enumerate(logprobs)]
        listed[self._main] = self._with_images(listed)

        def fuse(part: slice, refine: torch.Tensor | None = None) -> torch.Tensor:
            return self._fuse_part(
                [None if p is None else p[part] for p in logprobs],
                [None if x is None else x.taken(part) for x in listed],
                shares[part],
                [None if h is None else h.taken(part) for h in healing],
                refine,
            )

        # 2) Fuse as many sequences at a time as fit into the cache.
        fused = torch.cat([fuse(part) for part in _parts(main)])
        # 3) Where two tokens are nearly equal, repeat with exact rows.
        for row in _contested(fused):
            fused[row] = fuse(slice(row, row + 1), fused[row])[0]
        return fused

    def _fuse_part(
        self,
        logprobs: Sequence[torch.Tensor | None],
        listed: Sequence[_Listed | None],
        shares: torch.Tensor,
        healing: Sequence[Healing | None],
        refine: torch.Tensor | None,
    ) -> torch.Tensor:
        """Fuses some sequences, or refines a single one, given its fused log-probabilities [vocabulary]."""
        main, config, space = self._of_main(logprobs), self._config, self._spaces[self._main]
        mine = listed[self._main]
        assert mine is not None
        # 1) Project every member's mass into the relative space, and average.
        masses = [
            None if p is None or x is None else self._mass(member, x, p.exp())
            for member, (p, x) in enumerate(zip(logprobs, listed, strict=True))
        ]
        rows = [
            None if x is None or m is None else self._token_rows(member, x, m, refine)
            for member, (x, m) in enumerate(zip(listed, masses, strict=True))
        ]
        projected = [None if r is None or m is None else r.project(m) for r, m in zip(rows, masses, strict=True)]
        target = self._target(projected, shares, healing)

        # 2) Main's listed tokens move individually.
        start, search = masses[self._main], rows[self._main]
        assert start is not None and search is not None  # noqa: PT018 (one condition)
        own = main.gather(-1, mine.ids).masked_fill(~mine.live, -torch.inf)
        found, factor = SEARCHES[config.search](own, start, search, target, config)

        # 3) All others move with their column, if at all.
        fused = main.clone() if factor is None else main + space.columns.scatter_back(factor)
        return normalised(mine.written(fused, found), main)

    def _probable(self, member: int, logprobs: torch.Tensor) -> _Listed:
        """Returns a member's tokens that are probable enough for a row of their own, the most probable first."""
        config, space = self._config, self._spaces[member]
        ids, live = _largest(logprobs, config.floor, config.candidates)
        return _Listed(ids, live, space.rows(ids, live))

    def _with_images(self, listed: Sequence[_Listed | None]) -> _Listed:
        """Returns main's probable tokens and its counterparts of what the others favour, each once."""
        space, mine = self._spaces[self._main], listed[self._main]
        assert mine is not None
        images = [mine.ids[:, :0]]
        for member, theirs in enumerate(listed):
            if member == self._main or theirs is None:
                continue
            most = self._config.images
            columns, live = (
                theirs.rows.index[:, :most, 0].to(mine.ids.device),
                theirs.live[:, :most].to(mine.ids.device),
            )
            named = live & (columns < space.anchors)
            # Places without an image name main's best token instead, which counts once.
            images.append(torch.where(named, space.anchor_ids[columns.masked_fill(~named, 0)], mine.ids[:, :1]))
        more = torch.cat(images, dim=-1).sort(dim=-1).values  # [sequences, images]
        new = ~_is_among(more, mine.ids.masked_fill(~mine.live, -1).sort(dim=-1).values)
        new[:, 1:] &= more[:, 1:] != more[:, :-1]
        live = torch.cat([mine.live, new], dim=-1)
        live, order = live.sort(dim=-1, descending=True, stable=True)
        ids = torch.cat([mine.ids, more], dim=-1).gather(-1, order)
        return _Listed(ids, live, space.rows(ids, live))

    def _token_rows(self, member: int, listed: _Listed, mass: torch.Tensor, refine: torch.Tensor | None) -> TokenRows:
        space, exact_tail = self._spaces[member], None
        if refine is not None:
            probs = mass[0, : listed.ids.shape[-1]]
            if member == self._main:
                probs = torch.maximum(probs, refine[listed.ids[0]].exp())
            ids = listed.ids[0]
            places = ((probs >= _WEIGHTY) & listed.live[0] & (space.fixed[ids] < 0)).nonzero()[:, 0]
            exact_tail = (places, space.exact_tails(ids[places]))
        return TokenRows(listed.rows, space.tail, space.self_mass, exact_tail)

    def _mass(self, member: int, listed: _Listed, probs: torch.Tensor) -> torch.Tensor:
        """Orders probabilities as `TokenRows` does, [sequences, vocabulary] -> [sequences, tokens + gathered]."""
        space, tokens = self._spaces[member], listed.ids.shape[-1]
        mass = probs.new_empty(len(probs), tokens + space.columns.columns.gathered)
        mass[:, :tokens], others = listed.split(probs)
        space.columns.sum_by_column(others, into=mass[:, tokens:])
        return mass


def _contested(fused: torch.Tensor) -> list[int]:
    """Returns the sequences whose two best tokens are probable and nearly equal, from [sequences, vocabulary]."""
    best = fused.topk(min(2, fused.shape[-1]), dim=-1).values
    close = (best[:, 0] >= math.log(_CLEAR)) & (best[:, 0] - best[:, -1] < _TIE)
    return [int(row) for row in close.nonzero()[:, 0]]


def _parts(batch: torch.Tensor) -> Iterator[slice]:
    """Returns the slices of a batch [sequences, vocabulary] that are processed at a time."""
    rows = max(1, (_CPU_PART if batch.device.type == "cpu" else _GPU_PART) // batch.shape[-1])
    return (slice(start, start + rows) for start in range(0, len(batch), rows))


def _largest(logprobs: torch.Tensor, floor: float, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the tokens with a probability of at least `floor`, at most `most` of them, the most probable first.

    Returns:
        ids, int64 [sequences, tokens], and which of them are valid, bool [sequences, tokens]; at least one place.
    """
    meant = logprobs >= (math.log(floor) if floor > 0 else -math.inf)
    counts = meant.sum(-1, keepdim=True)  # [sequences, 1]
    tokens = int(counts.amax())
    if tokens > most:
        top = logprobs.topk(most, dim=-1)
        return top.indices, meant.gather(-1, top.indices)
    row, ids = meant.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row, 0]
    padded = counts.new_zeros(len(logprobs), max(1, tokens))
    padded[row, place] = ids
    meant = torch.arange(padded.shape[-1], device=row.device) < counts
    values = logprobs.gather(-1, padded).masked_fill(~meant, -math.inf)
    order = values.argsort(dim=-1, descending=True, stable=True)
    return padded.gather(-1, order), meant.gather(-1, order)


def _is_among(ids: torch.Tensor, those: torch.Tensor) -> torch.Tensor:
    """Whether each of some ids [sequences, ids] is among its sequence's sorted `those` [sequences, n]."""
    if those.shape[-1] == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    place = torch.searchsorted(those, ids).clamp_max(those.shape[-1] - 1)
    return those.gather(-1, place) == ids
