"""Similarity of tokens to the anchors, computed from the embeddings in place: no copy of their size is made."""

from __future__ import annotations

import torch

_CHUNK = 2048  # embeddings that are multiplied, and converted to float32, at a time


class Proximity:
    """`l2norm(cos(E[token], E[anchors]))`, which a relative row multiplies by the temperature.

    Columns are in the order of the vocabulary, not of the anchors: most of a vocabulary is shared, so the embedding
    matrix is multiplied in contiguous blocks.

    Args:
        embeddings: Input embeddings [vocabulary, width] of any floating type; referenced, not copied.
        others: Ids of the tokens that are not anchors, int64 [others].
    """

    def __init__(self, embeddings: torch.Tensor, others: torch.Tensor) -> None:
        self._embeddings = embeddings
        lengths = [torch.linalg.vector_norm(chunk.float(), dim=-1) for chunk in embeddings.split(_CHUNK)]
        self._scale = 1.0 / torch.cat(lengths).clamp_min(1e-8)  # [vocabulary], as `torch.cosine_similarity` does it
        self._others = others

    @property
    def bytes_held(self) -> int:
        """Memory beyond the embeddings and the ids that it was given."""
        return self._scale.numel() * self._scale.element_size()

    def logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns the similarity of some tokens [tokens] to every anchor.

        Returns:
            float32 [tokens, vocabulary]; -infinity where the column is not an anchor.
        """
        units = self._embeddings[token_ids].float() * self._scale[token_ids, None]
        near = units.new_empty(len(units), len(self._embeddings))
        for start in range(0, near.shape[1], _CHUNK):
            chunk = slice(start, start + _CHUNK)
            near[:, chunk] = units @ self._embeddings[chunk].float().T
        near.mul_(self._scale).index_fill_(1, self._others, 0.0)
        near.div_(torch.linalg.vector_norm(near, dim=-1, keepdim=True).clamp_min_(1e-12))
        return near.index_fill_(1, self._others, -torch.inf)
