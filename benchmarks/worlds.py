"""Vocabularies, embeddings and distributions with the structure of real ones.

Two members name the same things: equal tokens have latent vectors in common, which each member turns by an orthogonal
map of its own and blurs; stems, topics, a common component and lengths differ from token to token. What they predict
is a shared list of candidates with a Zipf-like fall, which each member distorts, over a long tail.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.fusion.deepen.relative_space import RelativeSpace
from deepen_core.tokenization.vocabulary import Vocabulary

CLASSES = ("low", "mid", "high")
TOKENIZERS = Path(__file__).parents[2] / "shared" / "tokenizers"
_SHARPNESS = {"low": 3.2, "mid": 1.3, "high": 0.55}
_TAIL = {"low": 1e-3, "mid": 1e-2, "high": 6e-2}
_BLUR = 0.25


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

    @property
    def width(self) -> int:
        """Of main's embeddings."""
        return self.embeddings[0].shape[1]

    @property
    def label(self) -> str:
        """Sizes of the vocabularies, anchors and width."""
        sizes = [*(len(e) for e in self.embeddings), self.anchors]
        return " / ".join(f"{size / 1000:.0f}k" for size in sizes) + f" / {self.width}"

    def spaces(self, entries: int = 16, temperature: float | None = None) -> list[RelativeSpace]:
        """A relative space per member."""
        return [
            RelativeSpace(e, a, fixed=f, entries=entries, temperature=temperature or "auto")
            for e, a, f in zip(self.embeddings, self.anchor_ids, self.fixed, strict=True)
        ]


class _Maker:
    """Draws everything from one seed."""

    def __init__(self, width: int, common: float, seed: int, device: str) -> None:
        self._random = torch.Generator(device).manual_seed(seed)
        self._width, self._common, self.device = width, common, device
        self._topics = self.normal(200, width)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._random, device=self.device)

    def integers(self, end: int, count: int) -> torch.Tensor:
        return torch.randint(end, (count,), generator=self._random, device=self.device)

    def order(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self._random, device=self.device)

    def meanings(self, stems: torch.Tensor) -> torch.Tensor:
        """Latent vectors [tokens, width]: a topic, a stem (by its number) and something of its own."""
        shared = self.normal(int(stems.max()) + 1, self._width)
        topics = self._topics[self.integers(len(self._topics), len(stems))]
        vectors = 0.4 * topics + 0.5 * shared[stems] + 0.8 * self.normal(len(stems), self._width)
        return vectors / self._width**0.5

    def spoken(self, vectors: torch.Tensor) -> torch.Tensor:
        """A member's embeddings of latent vectors: turned, shifted by what all have in common, and stretched."""
        turn, _ = torch.linalg.qr(self.normal(self._width, self._width))
        blurred = vectors + _BLUR * self.normal(*vectors.shape) / self._width**0.5
        middle = self._common * self.normal(1, self._width) / self._width**0.5 * 10
        return (blurred @ turn + middle) * torch.exp(0.3 * self.normal(len(vectors), 1))


def make_world(
    vocabularies: tuple[int, int],
    anchors: int,
    width: int,
    *,
    common: float = 0.1,
    seed: int = 0,
    device: str = "cpu",
) -> World:
    """Makes a world of made-up tokens.

    Args:
        vocabularies: Sizes, main's first.
        anchors: How many tokens both have.
        width: Of the embeddings.
        common: Length of the component that all tokens share, which makes embeddings anisotropic.
        seed: Of everything.
        device: Where the tensors are made.
    """
    maker = _Maker(width, common, seed, device)
    shared = maker.meanings(maker.integers(max(1, anchors // 8), anchors))
    world = World([], [], [])
    for size in vocabularies:
        ids = maker.order(size)[:anchors]
        vectors = maker.meanings(maker.integers(max(1, size // 8), size)).index_copy_(0, ids, shared)
        # Tokens that are not shared go by an anchor that they begin with; one of them ends a text.
        fixed = maker.integers(anchors, size).int().index_fill_(0, ids, -1)
        fixed[(fixed >= 0).nonzero()[0]] = anchors
        world.embeddings.append(maker.spoken(vectors))
        world.anchor_ids.append(ids)
        world.fixed.append(fixed)
    return world


def real_vocabularies(names: tuple[str, str]) -> list[Vocabulary]:
    """The vocabularies of two tokenizers beside the project."""
    files = [str(TOKENIZERS / name / "tokenizer.json") for name in names]
    return [Vocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_file=file)) for file in files]


def real_world(names: tuple[str, str], width: int, *, common: float = 0.1, seed: int = 0, device: str = "cpu") -> World:
    """Makes a world of real tokens with made-up embeddings.

    Anchors and beginnings are those of the real byte strings; spellings of one word (" The", "the") share a stem.

    Args:
        names: Of two tokenizers beside the project, main's first.
        width: Of the embeddings.
        common: As for `make_world`.
        seed: As for `make_world`.
        device: As for `make_world`.
    """
    vocabularies = real_vocabularies(names)
    anchors = Anchors.shared_by(vocabularies, names)
    maker = _Maker(width, common, seed, device)

    def meanings(tokens: list[bytes | None]) -> torch.Tensor:
        stems = [zlib.crc32((token or b"").strip().lower()) % 2**16 for token in tokens]
        return maker.meanings(torch.tensor(stems, device=device))

    shared = meanings(list(anchors.tokens))
    world = World([], [], [])
    for vocabulary, ids in zip(vocabularies, anchors.ids, strict=True):
        vectors = meanings([vocabulary.token_bytes(i) for i in range(vocabulary.size)])
        world.embeddings.append(maker.spoken(vectors.index_copy_(0, ids.to(device), shared)))
        world.anchor_ids.append(ids.to(device))
        world.fixed.append(anchors.fixed_columns(vocabulary, vocabulary.size, by_prefix=True).to(device))
    return world


def logits(
    world: World, entropy: str, rows: int, *, seed: int, shared_candidates: int = 400, popular: bool = False
) -> list[torch.Tensor]:
    """Logits of both members for some rows, [rows, vocabulary] each.

    Args:
        world: Whose vocabularies.
        entropy: "low", "mid" or "high".
        rows: How many.
        seed: Of these rows.
        shared_candidates: Anchors that both think of.
        popular: Draw these anchors by a Zipf law, as a text does, rather than evenly.
    """
    device = world.embeddings[0].device
    random = torch.Generator(device).manual_seed(seed)
    ranks = torch.arange(1, world.anchors + 1, device=device).float()
    chance = torch.rand(rows, world.anchors, generator=random, device=device).clamp_min(1e-30)
    drawn = -torch.log(-torch.log(chance)) - (ranks.log() if popular else 0.0)  # Gumbel noise: drawn without return
    places = drawn.topk(min(shared_candidates, world.anchors), dim=-1).indices
    if popular:  # the order is one of chance too, and the ranks are not those of the alphabet
        scattered = torch.randperm(world.anchors, generator=torch.Generator(device).manual_seed(0), device=device)
        places = scattered[places]
    zipf = -ranks[: places.shape[-1]].log()
    made = []
    for embeddings, ids in zip(world.embeddings, world.anchor_ids, strict=True):
        noise = 0.7 * torch.randn(places.shape, generator=random, device=device)
        head = torch.softmax(_SHARPNESS[entropy] * (zipf + noise), dim=-1) * (1 - _TAIL[entropy])
        tail = torch.softmax(2.0 * torch.randn(rows, len(embeddings), generator=random, device=device), dim=-1)
        probs = (tail * _TAIL[entropy]).scatter_add_(-1, ids[places], head)
        made.append(probs.log())
    return made
