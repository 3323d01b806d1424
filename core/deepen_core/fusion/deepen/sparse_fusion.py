"""DeePEn: average in the relative space, then search main's distribution that projects to the average.

Nothing of size vocabulary x anchors is touched for a token. Only tokens that matter have a row of their own in a step:
each member's most probable ones, and main's tokens for what the others favour (their images). All others are gathered
by the column they stand for, so that no mass is lost and nothing is cut off. What looks like a tie is looked at again
with whole rows of the few tokens that carry it. Control tokens, which no other member can know, are for main to decide:
a member that speaks of its own has no say in that step.
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
# The rest of a row is known to about half a percent of a probability: enough but for ties between probable tokens.
_TIE, _CLEAR = 0.01, 0.1
_WEIGHTY = 0.03  # tokens whose rests decide a tie


@dataclass(frozen=True)
class _Listed:
    """The tokens of a member that have a row of their own in a step.

    Attributes:
        ids: int64 [rows, tokens].
        live: bool [rows, tokens]; the other places only fill the tensor up.
        rows: Their relative rows [rows, tokens, entries].
    """

    ids: torch.Tensor
    live: torch.Tensor
    rows: SparseRows

    def taken(self, part: slice) -> _Listed:
        """Those of some rows of the batch, with no more places than they need."""
        tokens = max(1, int(self.live[part].sum(-1).amax()))
        return _Listed(self.ids[part, :tokens], self.live[part, :tokens], self.rows.taken(part, tokens))

    def split(self, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities [rows, vocabulary] as those of the listed tokens [rows, tokens] and those of all others."""
        own = probs.gather(-1, self.ids).masked_fill(~self.live, 0.0)
        return own, self.written(probs, torch.zeros_like(own))

    def written(self, values: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Overwrites values [rows, vocabulary] with new ones [rows, tokens] at the listed tokens."""
        new = torch.where(self.live, new, values.gather(-1, self.ids))
        # What fills up may name a token twice: it all writes what the first place does.
        ids, new = (torch.where(self.live, x, x[:, :1]) for x in (self.ids, new))
        return values.scatter_(-1, ids, new)


class DeepenFusion(AveragingFusion):
    """The strategies `"deepen"` (EM search) and `"deepen-paper"` (AdamW search).

    See `AveragingFusion` for the arguments.
    """

    def _combine(
        self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        """With rows for the tokens that matter."""
        main = self._of_main(logprobs)
        # 1) Which tokens matter; rows that are missing are built for the whole batch at once.
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

        # 2) Few rows of the batch at a time, as many as stay in the cache.
        fused = torch.cat([fuse(part) for part in _parts(main)])
        # 3) Where two tokens are nearly equal, their rows are looked at whole.
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
        """Fuses some rows, or one of which nearly all is known: its fused log-probabilities [vocabulary]."""
        main, config, space = self._of_main(logprobs), self._config, self._spaces[self._main]
        mine = listed[self._main]
        assert mine is not None
        # 1) Every member's mass in the relative space, and the average.
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

        # 2) Main's tokens that matter move each on its own.
        start, search = masses[self._main], rows[self._main]
        assert start is not None and search is not None  # noqa: PT018 (one condition)
        own = main.gather(-1, mine.ids).masked_fill(~mine.live, -torch.inf)
        found, factor = SEARCHES[config.search](own, start, search, target, config)

        # 3) All others go with their column, if they move at all.
        fused = main.clone() if factor is None else main + space.columns.scatter_back(factor)
        return normalised(mine.written(fused, found), main)

    def _probable(self, member: int, logprobs: torch.Tensor) -> _Listed:
        """A member's tokens that are probable enough to need their row, the most probable first."""
        config, space = self._config, self._spaces[member]
        ids, live = _largest(logprobs, config.floor, config.candidates)
        return _Listed(ids, live, space.rows(ids, live))

    def _with_images(self, listed: Sequence[_Listed | None]) -> _Listed:
        """Main's probable tokens and its tokens for what the others favour, each once."""
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
            # What is no image names main's best token instead, which counts once.
            images.append(torch.where(named, space.anchor_ids[columns.masked_fill(~named, 0)], mine.ids[:, :1]))
        more = torch.cat(images, dim=-1).sort(dim=-1).values  # [rows, images]
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
        """Probabilities as `TokenRows` has them, [rows, vocabulary] -> [rows, tokens + gathered columns]."""
        space, tokens = self._spaces[member], listed.ids.shape[-1]
        mass = probs.new_empty(len(probs), tokens + space.columns.columns.gathered)
        mass[:, :tokens], others = listed.split(probs)
        space.columns.sum_by_column(others, into=mass[:, tokens:])
        return mass


def _contested(fused: torch.Tensor) -> list[int]:
    """Rows of log-probabilities [rows, vocabulary] in which the two best tokens are probable and nearly equal."""
    best = fused.topk(min(2, fused.shape[-1]), dim=-1).values
    close = (best[:, 0] >= math.log(_CLEAR)) & (best[:, 0] - best[:, -1] < _TIE)
    return [int(row) for row in close.nonzero()[:, 0]]


def _parts(batch: torch.Tensor) -> Iterator[slice]:
    """Slices of a batch [rows, vocabulary] that are worked on at a time."""
    rows = max(1, (_CPU_PART if batch.device.type == "cpu" else _GPU_PART) // batch.shape[-1])
    return (slice(start, start + rows) for start in range(0, len(batch), rows))


def _largest(logprobs: torch.Tensor, floor: float, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a probability of at least `floor`, but at most `most` of them, the most probable first.

    Returns:
        ids, int64 [rows, tokens], and which of them are meant, bool [rows, tokens]; at least one place.
    """
    meant = logprobs >= (math.log(floor) if floor > 0 else -math.inf)
    counts = meant.sum(-1, keepdim=True)  # [rows, 1]
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
    """Whether each of some ids [rows, ids] is in its row of `those` [rows, n], which is sorted."""
    if those.shape[-1] == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    place = torch.searchsorted(those, ids).clamp_max(those.shape[-1] - 1)
    return those.gather(-1, place) == ids
