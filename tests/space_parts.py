"""Two small relative spaces over the same anchors, for the tests of fusion."""

import torch

from deepen_core.fusion.deepen.relative_space import RelativeSpace

ANCHORS, MAIN, OTHER = 60, 100, 90


def spaces(fixed_tail=4, entries=128, temperature="auto", prefix=False):
    """Two members over the same anchors; the last tokens are outside, one before them ends a text.

    With `prefix`, tokens that are not shared stand for an anchor instead of having a row.
    """
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(ANCHORS, 24, generator=random)
    made = []
    for size, order in ((MAIN, torch.arange(ANCHORS)), (OTHER, torch.randperm(ANCHORS, generator=random))):
        embeddings = torch.randn(size, 24, generator=random)
        embeddings[order] = latent + 0.1 * torch.randn(ANCHORS, 24, generator=random)
        fixed = torch.full((size,), -1, dtype=torch.int32)
        if prefix:
            fixed = torch.randint(ANCHORS, (size,), generator=random).int().index_fill(0, order, -1)
        fixed[-fixed_tail:] = ANCHORS + 1
        fixed[-fixed_tail - 1] = ANCHORS
        made.append(RelativeSpace(embeddings, order, fixed=fixed, entries=entries, temperature=temperature))
    return made
