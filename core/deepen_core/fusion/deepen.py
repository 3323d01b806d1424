"""DeePEn: average in the relative space, then search main's distribution that projects to the average.

Nothing of size vocabulary x anchors is touched for a token. Of each member only its most probable tokens are
projected, and only main's most probable tokens, with the images of what the others favour, are searched; all else is
one rest token on the rest column, so that no mass is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.config import FusionConfig
from deepen_core.inverse import DenseRows, Rows, adamw, expectation_maximisation
from deepen_core.relative import EntryRows, RelativeSpace, SparseRows


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

    def fuse(self, logprobs: Sequence[torch.Tensor | None], weights: torch.Tensor) -> torch.Tensor:
        """See `Fusion.fuse`."""
        main = logprobs[self._main]
        assert main is not None, "main never abstains"
        shares = weights / weights.sum(-1, keepdim=True)  # [rows, members]
        mixed = (shares[:, self._main] < 1.0).nonzero()[:, 0]
        if len(mixed) == 0:
            return main
        rows = mixed.to(main.device)
        chosen = [None if p is None else p[mixed.to(p.device)] for p in logprobs]
        combine = self._fuse_whole if self._config.exact else self._fuse_candidates
        fused = combine(chosen, shares[mixed])
        return fused if len(mixed) == len(main) else main.index_copy(0, rows, fused)

    def _fuse_whole(self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor) -> torch.Tensor:
        """With whole matrices and all tokens."""
        main = logprobs[self._main]
        assert main is not None
        target: torch.Tensor | float = 0.0
        for member, values in enumerate(logprobs):
            if values is not None:
                share = shares[:, member, None].to(values.device)
                target = target + _where(share, self._dense[member].project(values.exp())).to(main.device)
        assert isinstance(target, torch.Tensor)
        return torch.log_softmax(self._search(main, self._dense[self._main], target), dim=-1)

    def _fuse_candidates(self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor) -> torch.Tensor:
        """With the tokens that matter."""
        main = logprobs[self._main]
        assert main is not None
        space, config = self._spaces[self._main], self._config
        target = main.new_zeros(len(main), space.anchors + 3)  # [rows, anchors + 3]
        images = [space.stop_ids.expand(len(main), -1)]
        for member, values in enumerate(logprobs):
            if values is None or member == self._main:
                continue
            share = shares[:, member, None].to(values.device)
            top = values.topk(min(config.candidates, values.shape[-1]), dim=-1)
            probable = top.values.exp() >= config.row_floor
            rows = self._spaces[member].rows(top.indices, probable)
            target += _where(share, _projected(top.values.exp(), rows)).to(main.device)
            favoured = rows.index[:, : config.images, 0].masked_fill(~probable[:, : config.images], -1)
            images.append(self._images(favoured.to(main.device)))

        # 1) Candidates: main's best tokens, its tokens for what the others favour, and its stop tokens.
        best = main.topk(min(config.candidates, main.shape[-1]), dim=-1)
        more = torch.cat(images, dim=-1).sort(dim=-1).values  # [rows, images]
        start = main.gather(-1, more)
        known = start >= best.values[:, -1:]
        known[:, 1:] |= more[:, 1:] == more[:, :-1]
        wanted = (best.values.exp() >= config.row_floor) | _is_among(best.indices, more)
        best_rows = space.rows(best.indices, wanted)
        target += _where(shares[:, self._main, None].to(main.device), _projected(best.values.exp(), best_rows))
        start = torch.cat([best.values, start.masked_fill(known, -torch.inf)], dim=-1)  # [rows, best + images]

        # 2) All other tokens as one on the rest column. Mass below float32's resolution of one counts as none.
        rest = torch.log1p(-start.exp().sum(-1, keepdim=True).clamp_max(1.0))  # [rows, 1]
        entries = EntryRows(_joined(best_rows, space.rows(more)))
        found = self._search(torch.cat([start, rest], dim=-1), entries, entries.take(target))
        found = torch.log_softmax(found, dim=-1)

        # 3) Candidates take their new log-probability, the others keep their proportions among each other.
        kept = found[:, -1:] - rest
        fused = main + torch.where(torch.isfinite(kept), kept, torch.zeros_like(kept))
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
    """A member's most probable tokens in the relative space, all others on the rest column, [rows, anchors + 3]."""
    mass = rows.project(probs)
    mass[:, rows.anchors + 1] += (1.0 - probs.sum(-1)).clamp_min(0.0)
    return mass


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
    """The rows of main's best tokens, those of the images, and one token with all its mass on the rest column."""
    index = best.index.new_zeros(len(best.index), 1, best.index.shape[-1])
    value = best.value.new_zeros(index.shape)
    index[..., 0], value[..., 0] = best.anchors + 1, 1.0
    return SparseRows(
        torch.cat([best.index, more.index, index], dim=-2),
        torch.cat([best.value, more.value, value], dim=-2),
        torch.cat([best.spread, more.spread, best.spread.new_zeros(len(best.spread), 1)], dim=-1),
        best.anchors,
    )
