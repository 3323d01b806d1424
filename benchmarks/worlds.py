"""Synthetic vocabularies, embeddings and distributions with the structure of real ones.

Two members name the same things: equal tokens have latent vectors in common, which each member turns by an orthogonal
map of its own and blurs; stems, topics, a common component and lengths differ from token to token. What they predict
is a shared list of candidates with a Zipf-like fall, which each member distorts, over a long tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deepen_core.relative import RelativeSpace

CLASSES = ("low", "mid", "high")
_SHARPNESS = {"low": 3.2, "mid": 1.3, "high": 0.55}
_TAIL = {"low": 1e-3, "mid": 1e-2, "high": 6e-2}


@dataclass(frozen=True)
class World:
    """Two members over the same anchors.

    Attributes:
        embeddings: One tensor [vocabulary, width] per member.
        anchor_ids: One int64 tensor [anchors] per member.
        fixed: One int32 tensor [vocabulary] per member, see `RelativeSpace`.
    """

    embeddings: list[torch.Tensor]
    anchor_ids: list[torch.Tensor]
    fixed: list[torch.Tensor]

    @property
    def anchors(self) -> int:
        """How many tokens both members have."""
        return len(self.anchor_ids[0])

    def spaces(self, entries: int, temperature: float | None = None) -> list[RelativeSpace]:
        """A relative space per member."""
        return [
            RelativeSpace(e, a, fixed=f, entries=entries, temperature=temperature or "auto")
            for e, a, f in zip(self.embeddings, self.anchor_ids, self.fixed, strict=True)
        ]


def make_world(
    vocabularies: tuple[int, int],
    anchors: int,
    width: int,
    *,
    common: float = 0.1,
    prefix: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> World:
    """Makes a world.

    Args:
        vocabularies: Sizes of the two vocabularies.
        anchors: Tokens that both have.
        width: Of the embeddings.
        common: Length of the component that all tokens share, which makes embeddings anisotropic.
        prefix: Whether tokens that are not shared go by an anchor that they begin with.
        seed: Of everything.
        device: Where the tensors are made.
    """
    random = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, device=device)

    def meanings(count: int) -> torch.Tensor:
        """Latent vectors: a topic, a stem and something of its own."""
        topics, stems = normal(200, width), normal(max(1, count // 8), width)
        topic = torch.randint(len(topics), (count,), generator=random, device=device)
        stem = torch.randint(len(stems), (count,), generator=random, device=device)
        vectors = 0.4 * topics[topic] + 0.5 * stems[stem] + 0.8 * normal(count, width)
        return vectors / width**0.5

    shared = meanings(anchors)
    world = World([], [], [])
    for size in vocabularies:
        turn, _ = torch.linalg.qr(normal(width, width))
        ids = torch.randperm(size, generator=random, device=device)[:anchors]
        vectors = meanings(size)
        vectors[ids] = shared + 0.25 * normal(anchors, width) / width**0.5
        lengths = torch.exp(0.3 * normal(size, 1))
        middle = common * normal(1, width) / width**0.5 * 10
        fixed = torch.full((size,), -1, dtype=torch.int32, device=device)
        if prefix:
            fixed = torch.randint(anchors, (size,), generator=random, device=device).int()
            fixed[ids] = -1
        is_anchor = torch.zeros(size, dtype=torch.bool, device=device)
        is_anchor[ids] = True
        others = (~is_anchor).nonzero()[:, 0]
        fixed[others[0]] = anchors  # one token ends a text
        world.embeddings.append((vectors @ turn + middle) * lengths)
        world.anchor_ids.append(ids)
        world.fixed.append(fixed)
    return world


def logits(world: World, entropy: str, rows: int, *, seed: int, shared_candidates: int = 400) -> list[torch.Tensor]:
    """Logits of both members for some rows, [rows, vocabulary] each.

    Args:
        world: Whose vocabularies.
        entropy: "low", "mid" or "high".
        rows: How many.
        seed: Of these rows.
        shared_candidates: Anchors that both think of.
    """
    device = world.embeddings[0].device
    random = torch.Generator(device).manual_seed(seed)
    places = torch.stack(
        [torch.randperm(world.anchors, generator=random, device=device)[:shared_candidates] for _ in range(rows)]
    )
    zipf = -torch.log(torch.arange(1, shared_candidates + 1, device=device).float())
    made = []
    for embeddings, ids in zip(world.embeddings, world.anchor_ids, strict=True):
        noise = 0.7 * torch.randn(rows, shared_candidates, generator=random, device=device)
        head = torch.softmax(_SHARPNESS[entropy] * (zipf + noise), dim=-1) * (1 - _TAIL[entropy])
        tail = torch.softmax(2.0 * torch.randn(rows, len(embeddings), generator=random, device=device), dim=-1)
        probs = tail * _TAIL[entropy]
        probs.scatter_add_(-1, ids[places], head)
        made.append(probs.log())
    return made
