"""The relative space: represents each token by its similarity to every anchor.

A row of the relative matrix is `softmax(T * l2norm(cos(E[token], E[anchors])))`, a distribution over anchors. The
anchors are followed by the columns stop and unknown, see `deepen_core.fusion.anchors.columns`.
`Anchors.fixed_columns` decides which tokens get a row from embeddings, and which all their mass on one column.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from deepen_core.fusion.anchors.columns import Columns, TokenColumns
from deepen_core.fusion.deepen.calibration import calibrate_temperature, effective_support, self_mass
from deepen_core.fusion.deepen.similarity import Proximity
from deepen_core.fusion.deepen.sparse_matrix import SparseRows

_CHUNK_FLOATS = 16 * 2**20  # rows are built in chunks of at most this many cosines
_CALIBRATION_ANCHORS = 128


def relative_matrix(embeddings: torch.Tensor, anchor_ids: torch.Tensor, temperature: float = 100.0) -> torch.Tensor:
    """Returns the whole relative matrix, dense and exact: for small vocabularies and for checks.

    Args:
        embeddings: Input embeddings [vocabulary, width].
        anchor_ids: Ids of the anchor tokens [anchors].
        temperature: 100 in the paper.

    Returns:
        float32 [vocabulary, anchors]; each row sums to one.
    """
    units = F.normalize(embeddings.float(), dim=-1, eps=1e-8)
    anchors = units[anchor_ids.long().to(units.device)]
    rows = max(1, _CHUNK_FLOATS // max(1, len(anchors)))
    return torch.cat(
        [torch.softmax(temperature * F.normalize(u @ anchors.T, dim=-1, eps=1e-12), dim=-1) for u in units.split(rows)]
    )


class RelativeSpace:
    """The relative representation of one member's tokens; rows are built when first needed, and kept.

    Args:
        embeddings: The member's input embeddings [vocabulary, width]; referenced, not copied.
        anchor_ids: Its ids of the shared anchors [anchors].
        fixed: Column that a token has all its mass on, or -1 for a row from embeddings, int32 [vocabulary].
        temperature: A number, or "auto" to calibrate it.
        target_self_mass: With "auto", the median mass that an anchor is to keep for itself.
        entries: Number of entries kept of a row; the mass below them is spread.

    Attributes:
        temperature: The temperature in use.
        self_mass: Median mass that an anchor's row has on that anchor.
        effective_support: Median number of anchors that an anchor's row spreads over, the exponential of its entropy.
        tail: How rows spread the mass below their entries, float32 [anchors], summing to one: the mean of a sample.
        entries: Number of entries kept of a row.
        fixed: As given.
        columns: The column of each token.
    """

    def __init__(
        self,
        embeddings: torch.Tensor,
        anchor_ids: torch.Tensor,
        *,
        fixed: torch.Tensor,
        temperature: float | Literal["auto"] = "auto",
        target_self_mass: float = 0.9,
        entries: int = 16,
    ) -> None:
        self._embeddings = embeddings.detach()
        device = embeddings.device
        self.anchor_ids = anchor_ids.to(device)
        self.anchors = len(anchor_ids)
        self.entries = min(entries, self.anchors)
        self.fixed = fixed.to(device)
        self.columns = TokenColumns(Columns(self.anchors), self.anchor_ids, self.fixed)
        self._proximity = Proximity(self._embeddings, self.columns.others)

        sample = self.anchor_ids[:: max(1, self.anchors // _CALIBRATION_ANCHORS)]
        logits = self._proximity.logits(sample)  # [sample, vocabulary]
        if temperature == "auto":
            temperature = calibrate_temperature(logits, sample, target_self_mass)
        self.temperature = float(temperature)
        self.self_mass = self_mass(logits, sample, self.temperature)
        self.effective_support = effective_support(logits, self.temperature)
        self.tail = self._mean_tail(logits)

        self._slot = torch.full((len(embeddings),), -1, dtype=torch.int32, device=device)
        self._index = torch.empty(0, self.entries, dtype=torch.int32, device=device)
        self._value = torch.empty(0, self.entries, dtype=torch.float32, device=device)
        self._spread = torch.empty(0, dtype=torch.float32, device=device)
        self._built = 0
        one = torch.zeros(1, self.entries, dtype=torch.float32, device=device)
        one[:, 0] = 1.0
        self._store(None, torch.zeros_like(one, dtype=torch.int32), one, one.new_zeros(1))

    def _mean_tail(self, logits: torch.Tensor) -> torch.Tensor:
        mass = torch.softmax(self.temperature * logits, dim=-1)  # [sample, vocabulary]
        below = mass.scatter_(-1, mass.topk(self.entries, dim=-1).indices, 0.0).sum(0)[self.anchor_ids]
        total = below.sum()
        return torch.where(total > 0, below / total, 1.0 / self.anchors)

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self._embeddings.device

    @property
    def bytes_held(self) -> int:
        """Memory beyond the member's own weights."""
        held = (self.anchor_ids, self.tail, self.fixed, self._slot, self._index, self._value, self._spread)
        own = sum(t.numel() * t.element_size() for t in held)
        return own + self.columns.bytes_held + self._proximity.bytes_held

    def rows(self, token_ids: torch.Tensor, wanted: torch.Tensor | None = None) -> SparseRows:
        """Returns the rows of some tokens; missing ones are built by one matrix product.

        Args:
            token_ids: int64 [..., tokens].
            wanted: bool [..., tokens]; where it is false, the rows are not used. All are wanted by default.
        """
        from_embeddings = self.fixed[token_ids] < 0
        computed = from_embeddings if wanted is None else wanted & from_embeddings
        slots = self._slot[token_ids].masked_fill(~computed, 0)  # slot 0 is a row with a single entry
        if bool((slots < 0).any()):
            self.build(torch.unique(token_ids[slots < 0]))
            slots = torch.where(computed, self._slot[token_ids], slots)
        at = slots.long()
        index = self._index[at].long()  # [..., tokens, entries]
        fixed = self.columns.of[token_ids].masked_fill(from_embeddings, 0)
        index[..., 0] = torch.where(computed, index[..., 0], fixed)
        return SparseRows(index, self._value[at], self._spread[at])

    def exact_tails(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns the mass below the entries of some tokens' rows, computed anew, float32 [tokens, anchors].

        Args:
            token_ids: int64 [tokens], none with a fixed column.
        """
        mass = torch.softmax(self._proximity.logits(token_ids).mul_(self.temperature), dim=-1)
        return mass.index_select(-1, self.anchor_ids).scatter_(-1, self.rows(token_ids).index, 0.0)

    def build(self, token_ids: torch.Tensor) -> None:
        """Builds those rows of some tokens that are not built yet.

        Args:
            token_ids: int64 [tokens], none with a fixed column.
        """
        for chunk in token_ids[self._slot[token_ids] < 0].split(max(1, _CHUNK_FLOATS // len(self._embeddings))):
            mass = torch.softmax(self._proximity.logits(chunk).mul_(self.temperature), dim=-1)  # [tokens, vocabulary]
            value, ids = mass.topk(self.entries, dim=-1)  # [tokens, entries]
            whole = self.entries == self.anchors
            spread = value.new_zeros(len(chunk)) if whole else (1.0 - value.sum(-1)).clamp_min_(0.0)
            # If a sharp row has fewer entries than are kept, `topk` fills up with tokens of no mass, which need not be
            # anchors or have a column: these places repeat the row's own first anchor.
            column = self.columns.of[ids]
            self._store(chunk, torch.where(value > 0, column, column[:, :1]).int(), value, spread)

    @property
    def rows_built(self) -> int:
        """Number of rows built."""
        return self._built - 1

    def dense(self) -> torch.Tensor:
        """Returns all rows, exact: float32 [vocabulary, columns]. Only for `exact=True` and for checks."""
        matrix = relative_matrix(self._embeddings, self.anchor_ids, self.temperature)
        matrix = F.pad(matrix, (0, self.columns.columns.width - self.anchors))
        ids = (self.fixed >= 0).nonzero()[:, 0]
        matrix[ids] = 0.0
        matrix[ids, self.fixed[ids].long()] = 1.0
        return matrix

    @torch.inference_mode()  # for every caller: buffers made in inference mode cannot be written to outside of it
    def _store(
        self, token_ids: torch.Tensor | None, index: torch.Tensor, value: torch.Tensor, spread: torch.Tensor
    ) -> None:
        need = self._built + len(spread)
        if need > len(self._spread):
            room = max(need, 2 * len(self._spread), 1024) - len(self._spread)
            self._index = torch.cat([self._index, self._index.new_empty(room, self.entries)])
            self._value = torch.cat([self._value, self._value.new_empty(room, self.entries)])
            self._spread = torch.cat([self._spread, self._spread.new_empty(room)])
        at = slice(self._built, need)
        self._index[at], self._value[at], self._spread[at] = index, value, spread
        if token_ids is not None:
            self._slot[token_ids] = torch.arange(self._built, need, dtype=torch.int32, device=self.device)
        self._built = need
