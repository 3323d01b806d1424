"""Weights that follow which member predicts the text better."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_member import TableMember
from tiny import CORPUS, byte_level, sentencepiece_bpe

from deepen_core import Ensemble
from deepen_core.config import PRESETS
from deepen_core.errors import ConfigurationError
from deepen_core.fusion.adaptive_weights import AdaptiveWeights
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.policies import StaticWeights, WeighingInputs
from deepen_integrations.langchain import DeepenLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM

PROMPTS = ["Once upon a time", "The quick brown", "def mean", "Numbers: 1"]
OPTIONS = {"max_new_tokens": 16, "ignore_eos": True}
FUSIONS = ["deepen", "product"]


@pytest.fixture(scope="module")
def tables():
    """Each has met half of the texts; their tokenizers differ."""
    return TableMember("first", byte_level(), CORPUS[:4]), TableMember("second", sentencepiece_bpe(), CORPUS[4:7])


@pytest.fixture(scope="module")
def twins():
    """The same with one tokenizer."""
    return TableMember("first", byte_level(), CORPUS[:4]), TableMember("second", byte_level(), CORPUS[4:7])


class Watched(AdaptiveWeights):
    """Keeps what it was shown and what it said."""

    def __init__(self, shares):
        super().__init__(shares)
        self.records, self.said = [], []

    def weights(self, step):
        self.records.append(step.record.clone())
        self.said.append(super().weights(step))
        return self.said[-1]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", [0, 1])
def test_the_equation(twins, fusion, main):
    """Where every token is shared and none is healed, against the members' own log-probabilities of what was said."""
    policy, shares = Watched([0.3, 0.7]), [0.3, 0.7]
    config = PRESETS[fusion].model_copy(update={"healing": False})
    with Ensemble.from_members(twins, main=main, fusion=config, weights=policy) as ensemble:
        answer = ensemble.generate("The quick brown", logprobs=1, **OPTIONS)
    own = [[member.logprob for member in token.members] for token in answer.logprobs]
    record, experts = [0.0, 0.0], [0.9, 0.1 * 0.3, 0.1 * 0.7]
    for found, said, tokens in zip(policy.records, policy.said, own, strict=True):
        # Control tokens have a little of the mass, so that what the policy is told is not quite this.
        assert found[0].tolist() == pytest.approx([*record, *experts], abs=0.05)
        kept, trusted = found[0, :2].tolist(), found[0, 2:].tolist()
        slow = scaled([share * math.exp(0.05 * nats) for share, nats in zip(shares, kept, strict=True)])
        assert said[0].tolist() == pytest.approx([trusted[0] * slow[n] + trusted[1 + n] for n in range(2)], abs=1e-6)
        gained = [max(-5.0, min(5.0, tokens[n] - tokens[main])) for n in range(2)]
        record = [0.98 * old + new for old, new in zip(kept, gained, strict=True)]
        likely = [math.exp(nats) for nats in gained]
        likely = [sum(weight * one for weight, one in zip(slow, likely, strict=True)), *likely]
        moved = scaled([weight * one for weight, one in zip(trusted, likely, strict=True)])
        experts = [0.99 * new + 0.01 * old for new, old in zip(moved, [0.9, 0.1 * 0.3, 0.1 * 0.7], strict=True)]
    assert max(map(abs, record)) > 5  # they differ, or all of this would say nothing
    assert max(abs(new - old) for new, old in zip(experts, [0.9, 0.03, 0.07], strict=True)) > 0.1


def scaled(weights):
    return [weight / sum(weights) for weight in weights]


@given(
    ratios=st.lists(st.tuples(*[st.floats(-5, 5)] * 2), min_size=1, max_size=6),
    shares=st.sampled_from([(0.2, 0.3, 0.5), (0.6, 0.2, 0.2)]),
)
def test_experts_are_trusted_as_over_all_ways_to_switch(ratios, shares):
    """By brute force: which expert gives each token is a chain that starts anew with probability 0.01 at each token."""
    policy = AdaptiveWeights(shares)
    record = policy.first()
    likely = []  # of each token so far under each expert
    for pair in ratios:
        relative = [0.0, *pair]
        slow = scaled([s * math.exp(0.05 * nats) for s, nats in zip(shares, record[:3], strict=True)])
        found = [math.exp(nats) for nats in relative]
        likely.append([sum(map(math.prod, zip(slow, found, strict=True))), *found])
        record = policy.after(record, relative)
    prior = [0.9, *(0.1 * share for share in shares)]
    trusted = [0.0] * 4
    for way in itertools.product(range(4), repeat=len(likely) + 1):  # the last one is the next token's expert
        chance = prior[way[0]]
        for before, now in itertools.pairwise(way):
            chance *= 0.01 * prior[now] + 0.99 * (before == now)
        trusted[way[-1]] += chance * math.prod(token[expert] for token, expert in zip(likely, way, strict=False))
    assert record[3:] == pytest.approx(scaled(trusted), abs=1e-9)


@pytest.mark.parametrize("main", [0, 1])
def test_a_member_that_is_better_by_far_soon_answers_almost_alone(main):
    """And one that is only a little better does not."""
    far, little = AdaptiveWeights([0.5, 0.5]), AdaptiveWeights([0.5, 0.5])
    records = [far.first(), little.first()]
    better = 1 - main
    for _ in range(10):
        for n, (policy, nats) in enumerate(((far, 1.0), (little, 0.05))):
            relative = [0.0, 0.0]
            relative[better] = nats
            records[n] = policy.after(records[n], relative)
    weights = [
        policy.weights(WeighingInputs([], torch.ones(1, 2, dtype=torch.bool), torch.tensor([record])))[0, better]
        for policy, record in zip((far, little), records, strict=True)
    ]
    assert weights[0] > 0.8
    assert 0.5 < weights[1] < 0.6


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("main", [0, 1])
def test_a_text_that_one_member_knows_becomes_more_probable(tables, fusion, main):
    found = {}
    prompt, rest = CORPUS[0][:20], CORPUS[0][20:]
    for weights in ("static", "adaptive"):
        with Ensemble.from_members(tables, main=main, fusion=fusion, weights=weights) as ensemble:
            found[weights] = ensemble.score(prompt, rest).total
    assert found["adaptive"] > found["static"] + 0.1


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_batch_is_its_singles(tables, fusion):
    with Ensemble.from_members(tables, fusion=fusion, weights="adaptive") as ensemble:
        together = ensemble.generate(PROMPTS, **OPTIONS)
        assert max(tables[0].batches) > 1
        singles = [ensemble.generate(prompt, **OPTIONS) for prompt in PROMPTS]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in singles]


def test_a_score_is_what_was_generated(tables):
    with Ensemble.from_members(tables, weights="adaptive") as ensemble:
        answer = ensemble.generate(PROMPTS[0], logprobs=1, **OPTIONS)
        score = ensemble.score(PROMPTS[0], answer.text)
    assert score.token_ids == answer.token_ids
    assert score.logprobs == pytest.approx([token.logprob for token in answer.logprobs], abs=1e-4)


def test_what_a_constraint_forces_is_not_counted(tables):
    policy = Watched([0.5, 0.5])
    with Ensemble.from_members(tables, weights=policy) as ensemble:
        ensemble.generate(PROMPTS[0], choices=["zebra crossing"], max_new_tokens=16)
        assert len(policy.records) > 2
        first = torch.tensor([0.0, 0.0, 0.9, 0.05, 0.05])
        assert all(torch.equal(record, first[None]) for record in policy.records)
        assert torch.cat(policy.said).tolist() == [pytest.approx([0.5, 0.5])] * len(policy.said)
        policy.records.clear()
        ensemble.generate(PROMPTS[0], **OPTIONS)
        assert not torch.equal(policy.records[-1], first[None])


def test_shares_are_where_they_start(folders):
    members = [{"model": str(folders["alpha"]), "weight": 3}, {"model": str(folders["beta"]), "weight": 1}]
    with Ensemble.load(members, weights="adaptive", device="cpu", progress=False) as ensemble:
        assert [member.weight for member in ensemble.info.members] == [0.75, 0.25]
        assert ensemble.info.weight_policy == "adaptive"
        assert isinstance(ensemble._engine.decoder._mixer._policy, AdaptiveWeights)
    with Ensemble.load(members, weights="static", device="cpu", progress=False) as ensemble:
        assert type(ensemble._engine.decoder._mixer._policy) is StaticWeights


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        *(({"fusion": fusion}, "context") for fusion in ("deepen", "product", "bytes")),
        *(({"fusion": fusion}, "static") for fusion in ("union", "translate")),
        ({"weights": "static"}, "static"),
        ({"weights": [0.5, 0.5]}, "static"),
        ({"weights": "confidence"}, "confidence"),
    ],
    ids=str,
)
def test_the_default(tables, options, policy):
    """By the context from equal shares where the strategy compares tokens."""
    with Ensemble.from_members(tables, **options) as ensemble:
        assert ensemble.info.weight_policy == policy
        assert [member.weight for member in ensemble.info.members] == [0.5, 0.5]
        answer = ensemble.generate(PROMPTS[0], logprobs=1, **OPTIONS)
        if policy != "confidence":
            with Ensemble.from_members(tables, **{**options, "weights": policy}) as named:
                assert named.generate(PROMPTS[0], logprobs=1, **OPTIONS).logprobs == answer.logprobs


def test_the_default_of_members_that_count(tables, folders):
    """One that has no weight is never asked, so there is nothing to adapt; other shares are where weights start."""
    with Ensemble.from_members(tables[:1]) as alone:
        assert alone.info.weight_policy == "static"
    for weight, policy in ((0, "static"), (3, "context")):
        members = [str(folders["alpha"]), {"model": str(folders["beta"]), "weight": weight}]
        with Ensemble.load(members, device="cpu", progress=False) as ensemble:
            assert ensemble.info.weight_policy == policy
            assert [member.weight for member in ensemble.info.members] == [1 / (1 + weight), weight / (1 + weight)]


def test_relative_predictions():
    """Against the definition, with an unknown token, a member that abstains, and sequences that are not looked at."""
    own = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    other = torch.tensor([[0.25, 0.5, 0.25], [1e-9, 0.8, 0.2]])
    told, column_of = [own, other, None], torch.tensor([0, 1, 2, 3])
    comparison = Comparison(0, told, torch.tensor([-1, 1, -1, 0]), column_of)
    found = comparison.relative([0, 0, 0, 1])
    expected = [[0, 0, 0], [0, -5, 0], [0, 0, 0], [0, math.log(2), 0]]
    assert found.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    assert not comparison.relative([3, 3, 3, 3]).any()
    part = comparison.only(torch.tensor([1]))
    assert part.relative([0]).tolist() == [expected[1]]
    assert torch.equal(part.own, own[1:])


@pytest.mark.parametrize("model", [DeepenLLM, LlamaIndexLLM])
def test_from_the_adapters(model, needs_demo):
    llm = model.demo(weights="adaptive", max_new_tokens=8)
    assert llm.weights == "adaptive"
    said = llm.invoke("Question: Where does Felix live?\nAnswer:") if model is DeepenLLM else llm.complete("One").text
    assert said
    with pytest.raises(ConfigurationError, match="the name of a policy: static, adaptive, confidence"):
        model.demo(weights="adaptve")
