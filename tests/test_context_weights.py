"""Weights by the context: adaptive ones, times how likely each member finds the prompt."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_member import TableMember, a_byte
from tiny import CORPUS, byte_level, sentencepiece_bpe

from deepen_core import Ensemble
from deepen_core.engine.prompt_likelihood import NOT_ASKED, comparable, prompt_text
from deepen_core.errors import ConfigurationError
from deepen_core.fusion.adaptive_weights import AdaptiveWeights
from deepen_core.fusion.context_weights import ContextWeights
from deepen_core.fusion.policies import PerplexityWeights, WeighingInputs
from deepen_core.fusion.prompts import PromptLikelihood, PromptLikelihoods

SHARES = [0.2, 0.3, 0.5]
RATE = 10.0


def scaled(weights):
    return [w / sum(weights) for w in weights]


@pytest.fixture(scope="module")
def tables():
    """Each has met half of the texts; their tokenizers differ."""
    return TableMember("first", byte_level(), CORPUS[:4]), TableMember("second", sentencepiece_bpe(), CORPUS[4:7])


def likelihoods(nats, size=500):
    return PromptLikelihoods(torch.tensor(nats), torch.full((len(nats),), float(size)))


def step(records, prompts, size=500):
    speaking = torch.tensor(prompts) > -math.inf
    return WeighingInputs([], speaking, torch.tensor(records), prompts=likelihoods(prompts, size))


@given(st.integers(1, 4000), st.integers(1, 300))
def test_a_short_prompt_counts_as_itself(size, span):
    """Its own bytes, however likely each is; one of at least the span counts as a text of just that."""
    nats = [[-1.0, -3.0, -math.inf]]
    found = likelihoods(nats, size).over(span)
    assert found.tolist() == [[pytest.approx(value * min(size, span)) for value in nats[0]]]
    assert found.dtype == torch.float32


def test_a_word_says_little():
    """One member had half a nat less of each of its 12 bytes: by the byte alone, all weight would be gone."""
    policy = ContextWeights([0.5, 0.5])
    for size, expected in ((12, 0.05 * 12 * 0.6), (200, 6.0), (1000, 6.0)):
        [found] = policy.weights(step([policy.first()], [[-1.2, -0.6]], size)).tolist()
        assert found == pytest.approx(scaled([1.0, math.exp(expected)]), abs=1e-5)
    policy = PerplexityWeights([0.5, 0.5])
    for size, expected in ((1, 0.1), (12, 1.2), (40, 4.0), (1000, 4.0)):
        [found] = policy.weights(step([policy.first()], [[-1.2, -1.1]], size)).tolist()
        assert found == pytest.approx(scaled([1.0, math.exp(expected)]), abs=1e-5)


def test_of_members_the_one_that_was_asked_for_least_counts():
    known = [(-1.0, 12.0), NOT_ASKED, (-0.5, 9.0)]
    assert comparable(known) == PromptLikelihood((-1.0, 0.0, -0.5), 9.0)
    assert comparable([*known, None]) == PromptLikelihood.unknown(4)
    found = PromptLikelihoods.of([comparable(known), PromptLikelihood.unknown(3)])
    assert found.over(200).tolist() == [[-9.0, 0.0, -4.5], [0.0, 0.0, 0.0]]
    assert found.only([1]).nats.tolist() == found.only((1,)).nats.tolist() == [[0.0, 0.0, 0.0]]


def test_before_the_answer_the_prompt_alone_counts():
    prompts = [-1.0, -1.1, -0.95]
    [found] = ContextWeights(SHARES).weights(step([ContextWeights(SHARES).first()], [prompts])).tolist()
    assert found == pytest.approx(scaled([s * math.exp(RATE * nats) for s, nats in zip(SHARES, prompts, strict=True)]))


def test_then_the_answer_counts_too():
    told = [[0.0, 2.0, -1.0], [0.0, -5.0, 0.5], [0.0, 1.0, 1.0]]
    policy, plain = ContextWeights(SHARES), AdaptiveWeights(SHARES)
    record = policy.first()
    for relative in told:
        record = policy.after(record, relative)
    prompts = [[-1.0, -1.1, -0.95], [-2.0, -2.0, -2.0]]
    given = step([record, record], prompts)
    adaptive = plain.weights(given).tolist()
    found = policy.weights(given).tolist()
    assert adaptive[0] != pytest.approx(SHARES, abs=0.01)
    for weights, known, prompt in zip(found, adaptive, prompts, strict=True):
        expected = scaled([a * math.exp(RATE * nats) for a, nats in zip(known, prompt, strict=True)])
        assert weights == pytest.approx(expected, abs=1e-6)


def test_members_that_know_no_such_prompts_are_not_needed():
    policy = ContextWeights([0.0, 0.5, 0.5])
    prompts = [[-1.0, -1.6, -2.32], [-1.0, -math.inf, -math.inf]]  # the likeliest one has no share
    assert policy.needed(likelihoods(prompts)).tolist() == [[False, True, False], [False, False, False]]
    found = policy.weights(step([policy.first()] * 2, prompts)).tolist()
    assert found == [[0, 1, 0], [0, 0, 0]]  # then main speaks alone


@pytest.mark.parametrize("fusion", ["deepen", "bytes"])
def test_the_first_token_of_an_answer(tables, fusion):
    """Against static weights of what the prompt comes to; the second token against those that have seen the first."""
    prompts = [CORPUS[0][:30], CORPUS[5][:30], "zzz 123"]
    options = {"max_new_tokens": 3, "ignore_eos": True, "logprobs": 0}
    with Ensemble.from_members(tables, fusion=fusion, weights="context") as ensemble:
        found = ensemble.generate(prompts, **options)
    starts = []
    for prompt, answer in zip(prompts, found, strict=True):
        assert prompt_text(prompt) == prompt
        known = [a_byte(member, prompt) for member in tables]
        count = min(size for _, size in known)
        starts.append(scaled([math.exp(0.05 * count * nats) for nats, _ in known]))
        with Ensemble.from_members(tables, fusion=fusion, weights=starts[-1]) as ensemble:
            static = ensemble.generate(prompt, **options)
        assert answer.token_ids[0] == static.token_ids[0]
        assert answer.logprobs[0].logprob == pytest.approx(static.logprobs[0].logprob, abs=1e-4)
    assert starts[0][0] > 0.6 > 0.4 > starts[1][0]  # or it would say nothing


def test_a_prompt_without_a_likelihood_leaves_adaptive_weights(tables):
    found = []
    for weights in ("context", "adaptive"):
        with Ensemble.from_members(tables, weights=weights) as ensemble:
            found.append(ensemble.generate("T", max_new_tokens=8, ignore_eos=True, logprobs=0))
    assert [t.logprob for t in found[0].logprobs] == pytest.approx([t.logprob for t in found[1].logprobs], abs=1e-5)


def test_shares(tables):
    with Ensemble.from_members(tables, weights="context:0.9,0.1") as ensemble:
        assert ensemble.info.weight_policy == "context"
        assert [member.weight for member in ensemble.info.members] == pytest.approx([0.9, 0.1])
    with pytest.raises(ConfigurationError, match="needs"):
        Ensemble.from_members(tables, fusion="union", weights="context")
