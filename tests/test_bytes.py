"""Fusing by bytes: members' tokens spelled in main's, what they would have said instead, and whole ensembles."""

import math
from functools import cache
from itertools import product

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategy_parts import CPU, LongestFirst, bytes_of, distributions, members
from tiny import CORPUS

from benchmarks.byte_reader import PROBES, ByteReader
from benchmarks.given_text import Given
from deepen_core import Ensemble, SamplingParams
from deepen_core.config import BytesConfig
from deepen_core.demo import member_paths, questions
from deepen_core.fusion.anchors.main_tokens import MainTokens
from deepen_core.fusion.anchors.segmentation import Segmentation
from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.fusion.base import StepInputs
from deepen_core.fusion.bytes.byte_order import ByteOrder
from deepen_core.fusion.bytes.overhang import OverhangFinder
from deepen_core.fusion.bytes.spelling import Spelling
from deepen_core.fusion.bytes.strategy import BytesFusion
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.vocabulary import Vocabulary

PROMPTS = [f"{line.strip()[: 20 + 3 * n]}" for n in range(5) for line in CORPUS[:10]]


def toy(tokens):
    return Vocabulary(
        [*tokens, None],
        kind="plain",
        special_ids=[len(tokens)],
        stop_ids=[len(tokens)],
        bos_id=None,
        canonical={token: i for i, token in enumerate(tokens)},
        starts_with_space=False,
    )


@given(tokens=st.sets(st.binary(min_size=1, max_size=3), min_size=1, max_size=40), start=st.binary(max_size=3))
def test_tokens_that_begin_with_some_bytes_are_neighbours(tokens, start):
    """Also those after which no bytes sort."""
    vocabulary = toy([*sorted(tokens, key=hash), b"\xff", b"\xff\xff"])
    order = ByteOrder(vocabulary, vocabulary.size - 1)
    first, stop = order.beginning_with(start)
    assert order.values == sorted(order.values)
    assert [vocabulary.token_bytes(i) for i in order.ids] == order.values
    assert order.values[first:stop] == [v for v in order.values if v.startswith(start)]
    first, stop = order.longer_than(start)
    assert order.values[first:stop] == [v for v in order.values if v.startswith(start) and v != start]


def plain_spelled(member, main, p, own):
    """As the definition has it, token by token, in float64; no token ends in a blank."""
    firsts = {i: main.longest_beginning(member.token_bytes(i)) for i in range(member.size - 1)}
    owners = {
        t: member.longest_beginning(main.token_bytes(t))
        for t in range(main.size - 1)
        if main.token_bytes(t) not in member.tokens
    }
    direct = [0.0] * main.size
    for i, first in firsts.items():
        direct[first] += p[i]
    found = [0.0] * main.size
    for i, first in firsts.items():
        longer = [t for t, owner in owners.items() if owner == i]
        shared = main.token_bytes(first) == member.token_bytes(i)
        stays = own[first] * (1.0 if shared else p[i] / direct[first])
        total = stays + sum(own[t] for t in longer)
        found[first] += p[i] * (stays / total)
        for t in longer:
            found[t] += p[i] * own[t] / total
    return found


@given(seed=st.integers(0, 10**6), data=st.data())
def test_tokens_are_spelled_as_the_definition_says(seed, data):
    single = [b"a", b"b", b"c"]
    longer = [b"".join(p) for n in (2, 3) for p in product(single, repeat=n)]
    several = st.lists(st.sampled_from(longer), unique=True, max_size=8)
    member, main = (toy(single + data.draw(several)) for _ in range(2))
    random = torch.Generator().manual_seed(seed)
    p, own = (torch.softmax(3 * torch.randn(1, v.size, generator=random), -1) for v in (member, main))
    spelling = Spelling(LongestFirst(member), member.size, MainTokens(LongestFirst(main), main.size), CPU)
    found = spelling.spelled(p, own)
    expected = plain_spelled(member, main, p[0].double().tolist(), own[0].double().tolist())
    torch.testing.assert_close(found[0].double(), torch.tensor(expected).double(), atol=1e-6, rtol=1e-5)
    assert float(found.sum()) == pytest.approx(1.0 - float(p[0, -1]), abs=1e-5)


def test_what_a_member_would_have_said_instead():
    """By Bayes' rule: the ids as they are, longer tokens from both places, and another cut that was not run."""
    vocabulary = toy([b"a", b"b", b"c", b"ab", b"abc", b"bc", b"bcc"])
    finder = OverhangFinder(ByteOrder(vocabulary, vocabulary.size), LongestFirst(vocabulary), CPU)
    id_of = vocabulary.tokens
    first, second = (
        torch.log_softmax(torch.tensor(x), -1) for x in ([3.0, 1, 0, 2, 1, 0, 0, 0], [0.0, 4, 1, 0, 0, 2, 1, 0])
    )
    p, q = first.exp().tolist(), second.exp().tolist()
    # The text ends in "c", "b": longer than "b" are "bc" and "bcc"; nothing is longer than "cb".
    found = finder.find([(id_of[b"b"], second), (id_of[b"c"], first)])
    total = q[id_of[b"b"]] + q[id_of[b"bc"]] + q[id_of[b"bcc"]]
    assert found.finished == pytest.approx(q[id_of[b"b"]] / total, rel=1e-5)
    assert {(r.value, r.there): pytest.approx(r.share) for r in found.rests} == {
        (b"c", 1): q[id_of[b"bc"]] / total,
        (b"cc", 1): q[id_of[b"bcc"]] / total,
    }
    assert found.unknown == 0.0
    # In "a", "b" as two tokens, "ab" and "abc" might have been said from the first place on.
    found = finder.find([(id_of[b"b"], second), (id_of[b"a"], first)])
    weights = {b"": p[id_of[b"a"]] * q[id_of[b"b"]], b"c": p[id_of[b"abc"]] + p[id_of[b"a"]] * q[id_of[b"bc"]]}
    weights[b"cc"] = p[id_of[b"a"]] * q[id_of[b"bcc"]]
    total = sum(weights.values())
    assert found.finished == pytest.approx(weights[b""] / total, rel=1e-5)
    for value in (b"c", b"cc"):
        assert sum(r.share for r in found.rests if r.value == value) == pytest.approx(weights[value] / total, rel=1e-5)


def test_what_was_not_run_is_as_main_says():
    """The member says "ab" in one token, and before "c" as "a" and "bc"; it would have to be run anew to be asked."""

    class BeforeC(LongestFirst):
        def after(self, said, value):
            return b"bc" if said == (0,) and value.startswith(b"bc") else None

    vocabulary = toy([b"a", b"b", b"ab", b"bc", b"c"])
    probed = replace_probes(BeforeC(vocabulary), b"c")
    finder = OverhangFinder(ByteOrder(vocabulary, vocabulary.size), probed, CPU)
    logits = torch.log_softmax(torch.tensor([2.0, 0.0, 1.0, 0.0, 0.0, 0.0]), -1)
    found = finder.find([(2, logits)])
    assert found.rests == ()
    assert found.unknown == pytest.approx(math.e / (1 + math.e), rel=1e-5)
    assert found.finished + found.unknown == pytest.approx(1.0)


def replace_probes(cuts, value):
    """Cuts as given, asked with other bytes than letters and blanks."""
    inner = cuts.after
    cuts.after = lambda said, text: inner(said, text + value)
    return cuts


@pytest.mark.parametrize("mode", ["product", "mixture"])
def test_probabilities_sum_to_one(mode):
    vocabularies = members(3)
    logprobs = distributions(vocabularies, rows=20, seed=4)
    for main in range(3):
        fusion = bytes_of(vocabularies, main, mode=mode)
        fused = fusion.fuse(StepInputs(logprobs, torch.tensor([[0.2, 0.5, 0.3]] * 20)))
        torch.testing.assert_close(fused.exp().sum(-1), torch.ones(20), atol=1e-6, rtol=0)


@pytest.mark.parametrize("first", [tiny.byte_level, tiny.sentencepiece_bpe, tiny.unigram, tiny.gemma_like])
@pytest.mark.parametrize("second", [tiny.byte_level, tiny.sentencepiece_bpe, tiny.unigram, tiny.wordpiece])
def test_probabilities_sum_to_one_for_every_kind_of_tokenizer(first, second):
    """Whatever text the members stand in."""
    backends = [Backend(make()) for make in (first, second)]
    cuts = [
        Segmentation(Vocabulary.from_tokenizer(make(), (), b), b)
        for make, b in zip((first, second), backends, strict=True)
    ]
    sizes = [cut.vocabulary.size + 3 for cut in cuts]  # padded
    fusion = BytesFusion(cuts, sizes, 0, BytesConfig(), [CPU, CPU])
    random = torch.Generator().manual_seed(2)
    for text in ("I can't", "so\n\n   ", "in 1234", "好人", "a 👩‍🚀 b", "qu", "   "):
        ids = [backend.encode(text) or [0] for backend in backends]  # WordPiece drops blanks
        logits = [4 * torch.randn(1 + 3, size, generator=random) for size in sizes]
        heard = [
            [Heard(own[-1], x[1], ids[0], cut=True, trail=list(zip(own[::-1][:3], x[1:], strict=False)))]
            for own, x in zip(ids, logits, strict=True)
        ]
        inputs = StepInputs(
            [torch.log_softmax(x[:1], -1) for x in logits], torch.tensor([[0.5, 0.5]]), heard.__getitem__
        )
        fused = fusion.fuse(inputs)
        assert float(fused.exp().sum()) == pytest.approx(1.0, abs=1e-5)
        assert not bool(torch.isnan(fused).any())


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"healing": False}, 1e-5), ({"healing": False, "mode": "mixture"}, 1e-5), ({}, 1e-3)],
    ids=str,
)
def test_a_model_fused_with_itself_is_itself(member, options, tolerance):
    """Fifty greedy answers of models that have learned something, and their log-probabilities.

    With healing, a prompt counts as cut anywhere for the twin, and its first token differs by what that changes.
    """
    prompts = [question.prompt for question in questions()[:50]]
    sampling = {"max_new_tokens": 12, "logprobs": 1}
    folder, fusion = member_paths()[member], {"strategy": "bytes", **options}
    with Ensemble.load([folder], device="cpu", progress=False) as alone:
        expected = alone.generate(prompts, **sampling)
    with Ensemble.load([folder] * 2, device="cpu", progress=False, fusion=fusion) as twice:
        found = twice.generate(prompts, **sampling)
    assert len(found) == 50
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert [t.logprob for t in one.logprobs] == pytest.approx([t.logprob for t in other.logprobs], abs=tolerance)


@pytest.mark.parametrize("main", [0, 1])
def test_neighbours_do_not_matter(load, main):
    """Prompts of all lengths together and alone, sampled, streamed, and with a copied beginning."""
    options = {"max_new_tokens": 12, "temperature": 0.8, "seed": 7, "ignore_eos": True, "logprobs": 1}
    prompts = [*PROMPTS[:4], "so it", "T", PROMPTS[2] * 4, PROMPTS[2] * 4 + " and"]
    with load("alpha", "beta", main=main, fusion="bytes") as ensemble:
        together = ensemble.generate(prompts, **options)
        for prompt, answer in zip(prompts, together, strict=True):
            alone = ensemble.generate(prompt, **options)
            assert alone.token_ids == answer.token_ids
            assert [t.logprob for t in alone.logprobs] == pytest.approx([t.logprob for t in answer.logprobs], abs=1e-4)
            assert "".join(chunk.text for chunk in ensemble.stream(prompt, **options)) == alone.text


class EveryWay:
    """A model asked for the next byte by running every way to cut a text into tokens by itself.

    Args:
        member: The model.
        start: The first id, which every way begins with.
    """

    def __init__(self, member, start):
        self.member, self.start = member, start
        self.vocabulary = member.tokenizer.vocabulary
        self.values = {i: v for i in range(member.vocabulary_size) if (v := self.vocabulary.token_bytes(i))}
        self.after = cache(self.run)

    @torch.inference_mode()
    def run(self, ids):
        logits = self.member.model(torch.tensor([[self.start, *ids]])).logits[0, -1]
        return torch.softmax(logits.double(), -1).tolist()

    def possible(self, ids):
        spoken = [i for i in (self.start, *ids) if i in self.values]
        text = self.vocabulary.join(spoken, at_start=True).decode()
        encode = self.member.tokenizer.backend.encode
        return any(encode(text + probe)[: len(spoken)] == spoken for probe in PROBES)

    def ways(self, data, ids=()):
        """Every beginning of some bytes that the tokenizer may cut so, with what is left."""
        yield ids, data
        for token_id, value in self.values.items():
            longer = (*ids, token_id)
            if data.startswith(value) and self.vocabulary.id_of(value) == token_id and self.possible(longer):
                yield from self.ways(data[len(value) :], longer)

    def next_byte(self, data):
        found = [0.0] * 257
        for ids, left in self.ways(data):
            weight = math.prod(self.after(ids[:n])[token_id] for n, token_id in enumerate(ids))
            for token_id, value in self.values.items():
                if value.startswith(left) and len(value) > len(left):
                    found[value[len(left)]] += weight * self.after(ids)[token_id]
            if not left:
                found[256] += weight * sum(self.after(ids)[i] for i in self.vocabulary.stop_ids)
        return [mass / sum(found) for mass in found]


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_the_next_byte_is_that_of_all_ways_to_cut_a_text(folders, name):
    """Against every way to cut a few bytes into tokens, each run by itself through the model."""
    prompt, text = "a", " fox"
    with Ensemble.load([folders[name]], device="cpu", progress=False) as ensemble:
        found = ByteReader(ensemble, least=0.0).read(Given(prompt, text))
        member = ensemble._engine.members[0]
        first, *rest = ensemble._engine.decoder.start(prompt, SamplingParams(max_new_tokens=1)).main_sequence.ids
        plain = EveryWay(member, first)
        before = plain.vocabulary.join(rest)
        for count in range(len(text)):
            expected = plain.next_byte(before + text[:count].encode())
            assert found[count].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-9)
