"""Toy vocabularies and distributions over them, and strategies made for these."""

import torch

from deepen_core.config import (
    BytesConfig,
    FusionConfig,
    ProductConfig,
    TranslateConfig,
    UnionConfig,
)
from deepen_core.fusion.anchors.columns import TokenColumns
from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.fusion.bytes.strategy import BytesFusion
from deepen_core.fusion.deepen.sharp_fusion import SharpFusion
from deepen_core.fusion.product import ProductFusion
from deepen_core.fusion.translate import TranslateFusion, translation
from deepen_core.fusion.union import UnionFusion
from deepen_core.tokenization.vocabulary import Vocabulary

SHARED = [b"a", b"b", b" ", b" a", b"th"]


OWN = [[b"the", b" an", b"bb", b"x"], [b"them", b"aa", b"y", b" ab"], [b"t", b"the", b" abc"]]


CPU = torch.device("cpu")


def vocabulary(tokens, number):
    """A few tokens, two that end a text, a control token and an id without a token."""
    value = [*tokens, None, None, None, None]
    first = len(tokens)
    return Vocabulary(
        value,
        kind="plain",
        special_ids=range(first, first + 3),
        stop_ids=[first, first + 1 + number % 2],
        bos_id=None,
        canonical={token: i for i, token in enumerate(tokens)},
        starts_with_space=False,
    )


def members(count=2):
    """Each has the shared tokens in an order of its own, and others."""
    made = []
    for number in range(count):
        tokens = SHARED[number:] + OWN[number] + SHARED[:number]
        made.append(vocabulary(tokens, number))
    return made


def distributions(vocabularies, rows=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.log_softmax(3 * torch.randn(rows, v.size, generator=random), -1) for v in vocabularies]


def by_column(fusion, vocabularies, main, config, healers=()):
    anchors = Anchors.shared_by(vocabularies, [str(n) for n in range(len(vocabularies))])
    columns = [
        TokenColumns(anchors.columns, anchors.ids[n], anchors.fixed_columns(v, v.size, by_prefix=True))
        for n, v in enumerate(vocabularies)
    ]
    return fusion(columns, main, config, healers), anchors


def product_of(vocabularies, main=0, healers=(), **options):
    return by_column(ProductFusion, vocabularies, main, ProductConfig(**options), healers)


def deepen_of(vocabularies, main=0, **options):
    return by_column(SharpFusion, vocabularies, main, FusionConfig(**options))


def union_of(vocabularies, main=0, **options):
    sizes = [v.size for v in vocabularies]
    return UnionFusion(vocabularies, sizes, main, UnionConfig(**options), [CPU] * len(sizes))


def cuts(value, tokens):
    """Every way to cut some bytes into tokens."""
    if not value:
        return [[]]
    begun = [value[:n] for n in range(1, len(value) + 1) if value[:n] in tokens]
    return [[token, *rest] for token in begun for rest in cuts(value[len(token) :], tokens)]


def translate_of(vocabularies, main=0, prefer=min, **options):
    """Main's tokenizer cuts a text into as few tokens as it can, or as many with `max`; it may know no way."""
    mine, size = vocabularies[main], vocabularies[main].size

    def firsts(values):
        ways = [cuts(value, mine.tokens) for value in values]
        return [mine.tokens[prefer(way, key=len)[0]] if way else None for way in ways]

    made = [None if n == main else translation(v, v.size, mine, size, firsts) for n, v in enumerate(vocabularies)]
    return TranslateFusion(made, mine, size, main, TranslateConfig(**options), CPU)


class LongestFirst:
    """Cuts a text as `Segmentation` does, by a tokenizer that always takes the longest token."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def token_bytes(self, token_id):
        return self.vocabulary.token_bytes(token_id) or b""

    def firsts(self, values):
        return [self.vocabulary.longest_beginning(value) for value in values]

    def after(self, said, value):
        data = self.vocabulary.join(said) + value
        for token_id in said:
            if self.vocabulary.longest_beginning(data) != token_id:
                return None
            data = data[len(self.token_bytes(token_id)) :]
        first = self.vocabulary.longest_beginning(data)
        return None if first is None else self.token_bytes(first)

    def can_continue(self, said, value):
        return not said or self.after(tuple(said), value) is not None


def bytes_of(vocabularies, main=0, **options):
    sizes = [v.size for v in vocabularies]
    cut = [LongestFirst(v) for v in vocabularies]
    return BytesFusion(cut, sizes, main, BytesConfig(**options), [CPU] * len(sizes))


WEIGHTS = {2: [0.7, 0.3], 3: [0.2, 0.5, 0.3]}
