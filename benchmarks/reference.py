"""The plain way to fuse, with the cost profile of the published code: whole matrices and a search by autograd."""

from __future__ import annotations

import torch

from deepen_core.relative import relative_matrix


class DenseReference:
    """Holds a matrix [vocabulary, anchors] per member and reads main's about a dozen times for each token.

    Args:
        embeddings: One tensor [vocabulary, width] per member, main's first.
        anchor_ids: One tensor [anchors] per member.
        temperature: 100 as published.
    """

    def __init__(
        self, embeddings: list[torch.Tensor], anchor_ids: list[torch.Tensor], temperature: float = 100.0
    ) -> None:
        pairs = zip(embeddings, anchor_ids, strict=True)
        self.matrices = [relative_matrix(e, ids, temperature) for e, ids in pairs]

    @property
    def bytes_held(self) -> int:
        """Memory of the matrices."""
        return sum(m.numel() * m.element_size() for m in self.matrices)

    def fuse(self, logits: list[torch.Tensor], learning_rate: float = 0.15, steps: int = 5) -> torch.Tensor:
        """Fuses one row at equal weights, [vocabulary] per member, and returns main's moved logits [vocabulary]."""
        parts = [torch.softmax(x, -1) @ m for x, m in zip(logits, self.matrices, strict=True)]
        target = torch.stack(parts).mean(0)
        moved = logits[0].clone().requires_grad_()
        optimizer = torch.optim.AdamW([moved], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=learning_rate / 4)
        for _ in range(steps):
            optimizer.zero_grad()
            projected = torch.softmax(moved, -1) @ self.matrices[0]
            torch.nn.functional.kl_div(projected.log(), target, reduction="mean").backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return moved.detach()
