"""DeePEn: average in the relative space, then search main's distribution that projects to the average.

Nothing of size vocabulary x anchors is touched for a token. Of each member only its most probable tokens are
projected, and only main's most probable tokens, with the images of what the others favour, are searched; all else is
one tail token on the tail column, so that no mass is lost. Control tokens, which no other member can know, are for main
to decide: a member that speaks of its own has no say in that step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.config import FusionConfig
from deepen_core.healing import Healing
from deepen_core.inverse import DenseRows, Rows, adamw, expectation_maximisation
from deepen_core.relative import EntryRows, RelativeSpace, SparseRows

_SMALL_TAIL = 1e-2
_TINY = 1e-20


class DeepenFusion:
    """The strategies `"deepen"` (EM search) and `"deepen-paper"` (AdamW search).

    Args:
        spaces: The members' relative spaces over the same anchors.
        main: Which member's vocabulary is spoken.
        config: Search and its limits.
    """

    def __init__(self, spaces: Sequence[RelativeSpace], main: int, config: FusionConfig) -> None:
        self._spaces = list(spaces)
        self._main = main
        self._config = config
        self._dense = [DenseRows(s.dense()) for s in self._spaces] if config.exact else []

    @property
    def spaces(self) -> Sequence[RelativeSpace]:
        """The relative space of each member."""
        return self._spaces

    def fuse(
        self,
        logprobs: Sequence[torch.Tensor | None],
        weights: torch.Tensor,
        healing: Sequence[Healing | None] = (),
    ) -> torch.Tensor:
        """See `Fusion.fuse`."""
        main = logprobs[self._main]
        assert main is not None, "main never abstains"
        shares = weights / weights.sum(-1, keepdim=True)  # [rows, members]
        mixed = (shares[:, self._main] < 1.0).nonzero()[:, 0]
        if len(mixed) == 0:
            return main
        rows = mixed.to(main.device)
        chosen = [None if p is None else p[mixed.to(p.device)] for p in logprobs]
        healed = [None if h is None else h.taken(mixed) for h in healing] or [None] * len(logprobs)
        combine = self._fuse_whole if self._config.exact else self._fuse_candidates
        fused = combine(chosen, shares[mixed], healed)
        return fused if len(mixed) == len(main) else main.index_copy(0, rows, fused)

    def _fuse_whole(
        self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        """With whole matrices and all tokens."""
        main = logprobs[self._main]
        assert main is not None
        projected = [None if p is None else self._dense[i].project(p.exp()) for i, p in enumerate(logprobs)]
        found = self._search(main, self._dense[self._main], self._target(projected, shares, healing))
        return torch.log_softmax(_alive(found, main), dim=-1)

    def _target(
        self, projected: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        """The weighted average of the members' columns [rows, columns] over what all of them can know.

        Main's own control tokens keep the mass that main gives them. What another member gives to its own goes to
        main's distribution instead, in that member's share.
        """
        own = projected[self._main]
        assert own is not None
        unknown = self._spaces[self._main].anchors + 1
        kept = own[:, unknown, None]
        known = own.clone()
        known[:, unknown] = 0.0
        room = known.sum(-1, keepdim=True)
        left = shares[:, self._main, None].to(own.device)
        average = torch.zeros_like(own)
        for member, mass in enumerate(projected):
            if mass is not None and member != self._main:
                correction = healing[member]
                meant = mass if correction is None else correction.applied(mass)
                told = _where(shares[:, member, None].to(own.device), meant.to(own.device))
                left = left + told[:, unknown, None]
                average += told
        average[:, unknown] = 0.0
        average += left * known / room.clamp_min(_TINY)
        average *= room / average.sum(-1, keepdim=True).clamp_min(_TINY)
        average[:, unknown] = kept[:, 0]
        return average

    def _fuse_candidates(
        self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        """With the tokens that matter."""
        main = logprobs[self._main]
        assert main is not None
        space, config = self._spaces[self._main], self._config
        projected: list[torch.Tensor | None] = [None] * len(logprobs)  # each [rows, anchors + 4]
        images = [space.stop_ids.expand(len(main), -1)]
        for member, values in enumerate(logprobs):
            if values is None or member == self._main:
                continue
            top = values.topk(min(config.candidates, values.shape[-1]), dim=-1)
            probable = top.values.exp() >= config.row_floor
            rows = self._spaces[member].rows(top.indices, probable)
            projected[member] = _projected(top.values.exp(), rows)
            favoured = rows.index[:, : config.images, 0].masked_fill(~probable[:, : config.images], -1)
            images.append(self._images(favoured.to(main.device)))

        # 1) Candidates: main's best tokens, its tokens for what the others favour, and its stop tokens.
        best = main.topk(min(config.candidates, main.shape[-1]), dim=-1)
        more = torch.cat(images, dim=-1).sort(dim=-1).values  # [rows, images]
        start = main.gather(-1, more)
        known = _is_among(more, best.indices.sort(dim=-1).values)
        known[:, 1:] |= more[:, 1:] == more[:, :-1]
        wanted = (best.values.exp() >= config.row_floor) | _is_among(best.indices, more)
        best_rows = space.rows(best.indices, wanted)
        projected[self._main] = _projected(best.values.exp(), best_rows)
        start = torch.cat([best.values, start.masked_fill(known, -torch.inf)], dim=-1)  # [rows, best + images]

        # 2) All other tokens as one on the tail column.
        tail = _tail(main, start, best.indices, more)  # [rows, 1]
        start = torch.cat([start, tail], dim=-1)
        entries = EntryRows(_joined(best_rows, space.rows(more)))
        found = self._search(start, entries, entries.take(self._target(projected, shares, healing)))
        found = torch.log_softmax(_alive(found, start), dim=-1)

        # 3) Candidates take their new log-probability, the others keep their proportions among each other.
        fused = main + torch.where(torch.isfinite(tail), found[:, -1:] - tail, 0.0)
        more_new = torch.where(known, fused.gather(-1, more), found[:, best.values.shape[-1] : -1])
        # A known image is written with what stands there; if that is one of the best, the next line sets it right.
        fused.scatter_(-1, more, _first_of_equals(more, more_new))
        return fused.scatter_(-1, best.indices, found[:, : best.values.shape[-1]])

    def _images(self, columns: torch.Tensor) -> torch.Tensor:
        """Main's tokens for some columns [rows, images]; the first anchor's where a column is not one of an anchor."""
        space = self._spaces[self._main]
        return space.anchor_ids[torch.where(columns < space.anchors, columns, 0).clamp_min(0)]

    def _search(self, logprobs: torch.Tensor, rows: Rows, target: torch.Tensor) -> torch.Tensor:
        """From main's log-probabilities of some tokens to the fused ones, not normalised."""
        config = self._config
        if config.search == "adamw":
            columns = self._spaces[self._main].anchors + 2
            return adamw(logprobs, rows, target, config.trust_radius, config.steps, columns)
        return expectation_maximisation(logprobs.exp(), rows, target, config.steps).log()


def _projected(probs: torch.Tensor, rows: SparseRows) -> torch.Tensor:
    """A member's most probable tokens in the relative space, all others on the tail column, [rows, anchors + 4]."""
    mass = rows.project(probs)
    mass[:, rows.anchors + 2] = (1.0 - probs.sum(-1)).clamp_min(0.0)
    return mass


def _tail(main: torch.Tensor, taken: torch.Tensor, best: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """Log-probability [rows, 1] of all of main's tokens but the taken ones, whose ids are `best` and `more`.

    One minus the taken mass is off by float32's resolution of one, which is more than a small tail has: there the tail
    itself is summed.
    """
    mass = 1.0 - taken.exp().sum(-1, keepdim=True)
    small = (mass[:, 0] < _SMALL_TAIL).nonzero()[:, 0]
    tail = mass.clamp_min(_SMALL_TAIL).log()
    if len(small):
        left = main[small].scatter(-1, best[small], -torch.inf).scatter(-1, more[small], -torch.inf)
        tail = tail.index_copy(0, small, torch.logsumexp(left, dim=-1, keepdim=True))
    return tail


def _alive(found: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """What a search has found, or its start in rows where nothing main can say is near the target."""
    best = found.amax(-1, keepdim=True)
    return torch.where(torch.isfinite(best), found, start)


def _is_among(ids: torch.Tensor, those: torch.Tensor) -> torch.Tensor:
    """Whether each of some ids [rows, ids] is in its row of `those` [rows, n], which is sorted."""
    if those.shape[-1] == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    place = torch.searchsorted(those, ids).clamp_max(those.shape[-1] - 1)
    return those.gather(-1, place) == ids


def _where(share: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """`share * mass`, and zero where the share is zero whatever the mass is."""
    return torch.where(share > 0, share * mass, torch.zeros_like(mass))


def _first_of_equals(ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values of sorted ids [rows, ids], equal ids with the value of the first: the order of writing is no matter."""
    first = torch.searchsorted(ids, ids)
    return values.gather(-1, first)


def _joined(best: SparseRows, more: SparseRows) -> SparseRows:
    """The rows of main's best tokens, those of the images, and one token with all its mass on the tail column."""
    index = best.index.new_zeros(len(best.index), 1, best.index.shape[-1])
    value = best.value.new_zeros(index.shape)
    index[..., 0], value[..., 0] = best.anchors + 2, 1.0
    return SparseRows(
        torch.cat([best.index, more.index, index], dim=-2),
        torch.cat([best.value, more.value, value], dim=-2),
        torch.cat([best.spread, more.spread, best.spread.new_zeros(len(best.spread), 1)], dim=-1),
        best.anchors,
    )
