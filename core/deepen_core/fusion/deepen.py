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
from deepen_core.relative import RelativeSpace, SparseRows


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
        space = self._spaces[self._main]
        target = main.new_zeros(len(main), space.anchors + 2)  # [rows, anchors + 2]
        others = torch.zeros_like(target)
        for member, values in enumerate(logprobs):
            if values is None:
                continue
            mass = _where(shares[:, member, None].to(values.device), self._project(member, values)).to(main.device)
            target += mass
            if member != self._main:
                others += mass

        # 1) Candidates: main's best tokens, its tokens for the anchors that the others favour, and its stop tokens.
        best = main.topk(min(self._config.candidates, main.shape[-1]), dim=-1).indices  # [rows, best]
        images = others[:, : space.anchors].topk(min(self._config.images, space.anchors), dim=-1).indices
        stops = space.stop_ids.expand(len(main), -1)
        ids = torch.cat([best, space.anchor_ids[images], stops], dim=-1)  # [rows, best + images + stops]
        seen = torch.zeros_like(main, dtype=torch.bool).scatter_(-1, best, True)
        fresh = torch.cat([torch.ones_like(best, dtype=torch.bool), ~seen.gather(-1, ids[:, best.shape[-1] :])], dim=-1)
        start = main.gather(-1, ids).masked_fill(~fresh, -torch.inf)

        # 2) All other tokens as one on the rest column. Mass below float32's resolution of one counts as none.
        rest = torch.log1p(-start.exp().sum(-1, keepdim=True).clamp_max(1.0))  # [rows, 1]
        rows = _with_rest(space.rows(ids))
        found = self._search(torch.cat([start, rest], dim=-1), rows, target)

        # 3) Candidates take their new log-probability, the others keep their proportions among each other.
        kept = found[:, -1:] - rest
        fused = main + torch.where(torch.isfinite(kept), kept, torch.zeros_like(kept))
        new = torch.where(fresh, found[:, :-1], fused.gather(-1, ids))
        # An image that is among the best as well is written twice; the second writing must not undo the first.
        fused.scatter_(-1, ids[:, best.shape[-1] :], new[:, best.shape[-1] :])
        fused.scatter_(-1, best, new[:, : best.shape[-1]])
        return torch.log_softmax(fused, dim=-1)

    def _project(self, member: int, logprobs: torch.Tensor) -> torch.Tensor:
        """A member's distribution in the relative space, its improbable tokens on the rest column."""
        space = self._spaces[member]
        top = logprobs.topk(min(self._config.candidates, logprobs.shape[-1]), dim=-1)
        probs = top.values.exp()
        mass = space.rows(top.indices).project(probs)  # [rows, anchors + 2]
        mass[:, -1] += (1.0 - probs.sum(-1)).clamp_min(0.0)
        return mass

    def _search(self, logprobs: torch.Tensor, rows: Rows, target: torch.Tensor) -> torch.Tensor:
        """From main's log-probabilities of some tokens to the fused ones, not normalised."""
        config = self._config
        if config.search == "adamw":
            return adamw(logprobs, rows, target, config.trust_radius, config.steps, target.shape[-1])
        return expectation_maximisation(logprobs.exp(), rows, target, config.steps).log()


def _where(share: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """`share * mass`, and zero where the share is zero whatever the mass is."""
    return torch.where(share > 0, share * mass, torch.zeros_like(mass))


def _with_rest(rows: SparseRows) -> SparseRows:
    """Adds a last token that has all its mass on the rest column."""
    index = rows.index.new_zeros(*rows.index.shape[:-2], 1, rows.index.shape[-1])
    value = rows.value.new_zeros(index.shape)
    index[..., 0], value[..., 0] = rows.anchors + 1, 1.0
    spread = rows.spread.new_zeros(*rows.spread.shape[:-1], 1)
    return SparseRows(
        torch.cat([rows.index, index], dim=-2),
        torch.cat([rows.value, value], dim=-2),
        torch.cat([rows.spread, spread], dim=-1),
        rows.anchors,
    )
