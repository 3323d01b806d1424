"""Weights that follow which member predicts the text better."""

import math

import pytest
import torch
from table_member import TableMember
from tiny import CORPUS, byte_level, sentencepiece_bpe

from deepen_core import Ensemble
from deepen_core.config import PRESETS
from deepen_core.errors import ConfigurationError
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.policies import AdaptiveWeights, StaticWeights
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
    record = [0.0, 0.0]
    for found, said, tokens in zip(policy.records, policy.said, own, strict=True):
        assert found[0].tolist() == pytest.approx(record, abs=0.05)  # control tokens have a little of the mass
        raised = [share * math.exp(0.05 * nats) for share, nats in zip(shares, found[0].tolist(), strict=True)]
        assert said[0].tolist() == pytest.approx([one / sum(raised) for one in raised], abs=1e-6)
        gained = [max(-5.0, min(5.0, tokens[n] - tokens[main])) for n in range(2)]
        record = [0.98 * old + new for old, new in zip(record, gained, strict=True)]
    assert max(map(abs, record)) > 5  # they differ, or all of this would say nothing


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
        assert not torch.cat(policy.records).any()
        policy.records.clear()
        ensemble.generate(PROMPTS[0], **OPTIONS)
        assert torch.cat(policy.records).any()


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
        *(({"fusion": fusion}, "adaptive") for fusion in ("deepen", "product", "bytes")),
        *(({"fusion": fusion}, "static") for fusion in ("union", "translate")),
        ({"weights": "static"}, "static"),
        ({"weights": [0.5, 0.5]}, "static"),
        ({"weights": "confidence"}, "confidence"),
    ],
    ids=str,
)
def test_the_default(tables, options, policy):
    """Adaptive from equal shares where the strategy compares tokens."""
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
    for weight, policy in ((0, "static"), (3, "adaptive")):
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
