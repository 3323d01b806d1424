"""What is open to others: members of any kind, and policies that weigh them."""

import json
import math

import pytest
import torch
from table_member import TableMember
from tiny import CORPUS, byte_level, sentencepiece_bpe

from deepen_core import Ensemble
from deepen_core.errors import CompatibilityWarning, ConfigurationError, NoCommonTokensError
from deepen_core.fusion.policies import WeightPolicy

PROMPTS = ["Once upon a time", "The quick brown", "def mean", "你好", "Numbers: 1"]
OPTIONS = {"max_new_tokens": 16, "ignore_eos": True}


@pytest.fixture(scope="module")
def tables():
    """Each has met half of the texts."""
    return TableMember("first", byte_level(), CORPUS[:4]), TableMember("second", sentencepiece_bpe(), CORPUS[4:7])


@pytest.fixture(scope="module")
def alpha(folders):
    """A real model as a loaded member."""
    with Ensemble.load([folders["alpha"]], device="cpu", progress=False) as ensemble:
        yield ensemble._engine.members[0]


@pytest.mark.parametrize("fusion", ["union", "product", "translate", "bytes"])
@pytest.mark.parametrize("main", [0, 1, 2])
def test_members_without_embeddings_answer_beside_models(tables, alpha, fusion, main):
    """In batches as alone, and every answer is one of main's texts."""
    members = [*tables, alpha]
    with Ensemble.from_members(members, main=main, fusion=fusion) as ensemble:
        together = ensemble.generate(PROMPTS, **OPTIONS)
        assert max(tables[0].batches) > 1
        singles = [ensemble.generate(prompt, **OPTIONS) for prompt in PROMPTS]
        info = ensemble.info
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in singles]
    assert [m.architecture for m in info.members] == ["TableMember", "TableMember", "GPT2LMHeadModel"]
    assert info.members[0].temperature is None
    assert info.members[0].parameters == 0


def test_tables_say_what_they_have_counted(tables):
    """Members without a model are fused as others are: what one has met prevails where the other knows nothing."""
    with Ensemble.from_members(tables, fusion="union") as ensemble:
        answer = ensemble.generate("The quick brown fox", max_new_tokens=20, logprobs=1)
        score = ensemble.score("The quick brown fox", " jumps over the lazy dog")
    assert answer.text.startswith(" jumps over the lazy dog")
    assert [m.name for m in answer.logprobs[0].members] == ["first", "second"]
    known, unknown = (member.total for member in score.members)
    assert known > score.total > unknown


@pytest.mark.parametrize("fusion", [{"rows": "soft"}, "deepen-paper"])
def test_strategies_that_compare_embeddings_refuse_members_without(tables, alpha, fusion):
    with pytest.raises(
        ConfigurationError,
        match=r"Member 'first' has no embeddings.*fusion='bytes', fusion='union' or fusion='product'",
    ):
        Ensemble.from_members([alpha, tables[0]], fusion=fusion)


def test_constraints_and_streams_work_on_them(tables):
    with Ensemble.from_members(tables, fusion="product") as ensemble:
        schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
        answer = ensemble.generate("Numbers: ", json_schema=schema, max_new_tokens=40)
        pieces = [chunk.text for chunk in ensemble.stream("Once upon", **OPTIONS)]
        assert "".join(pieces) == ensemble.generate("Once upon", **OPTIONS).text
    if answer.finish_reason == "stop":
        assert json.loads(answer.text)["a"] <= 99


def test_names_must_differ(tables):
    with pytest.raises(ConfigurationError, match="a name of its own"):
        Ensemble.from_members([tables[0], tables[0]], fusion="union")
    with pytest.raises(ConfigurationError, match="at least one"):
        Ensemble.from_members([], fusion="union")


class Alternating(WeightPolicy):
    """Hears whoever is surer in each sequence, and keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def weights(self, step):
        surest = [None if p is None else p.amax(-1) for p in step.logprobs]
        self.seen.append((step.speaking.clone(), surest))
        scores = torch.stack([torch.full((len(step.speaking),), -math.inf) if s is None else s for s in surest], dim=-1)
        scores[~step.speaking] = -math.inf
        return torch.nn.functional.one_hot(scores.argmax(-1), len(surest)).float()

    def describe(self):
        return [0.5, 0.5]


def test_a_policy_weighs_each_sequence_anew(tables):
    """With all the weight on one member the ensemble says what static weights have it say."""
    policy = Alternating()
    alone = []
    for weights in ([1, 0], [0, 1]):
        with Ensemble.from_members(tables, fusion="union", weights=weights) as ensemble:
            alone.append([a.token_ids[0] for a in ensemble.generate(PROMPTS, max_new_tokens=1, ignore_eos=True)])
    with Ensemble.from_members(tables, fusion="union", weights=policy) as ensemble:
        assert [m.weight for m in ensemble.info.members] == [0.5, 0.5]
        handles = [ensemble.submit(prompt, max_new_tokens=1, ignore_eos=True) for prompt in PROMPTS]
        found = [handle.result().token_ids[0] for handle in handles]
    chosen = [int(s) for speaking, surest in policy.seen for s in torch.stack(surest, dim=-1).argmax(-1)]
    assert len(chosen) == len(PROMPTS)
    assert sorted(found) == sorted(alone[who][place] for place, who in enumerate(chosen))
    assert set(chosen) == {0, 1}


@pytest.mark.filterwarnings("ignore::deepen_core.errors.CompatibilityWarning")
def test_members_that_share_no_token(tables):
    """`"product"` says so; `"union"` needs no shared token."""

    word = TableMember("words", byte_level(), CORPUS)
    word.tokenizer.vocabulary._canonical = {}
    with pytest.raises(NoCommonTokensError):
        Ensemble.from_members([tables[0], word], fusion="product")


def test_warnings_come_from_here_too(tables, monkeypatch):
    monkeypatch.setattr(tables[1].tokenizer, "bytes_per_token", 40.0)
    with pytest.warns(CompatibilityWarning, match="Tokens differ much in length"):
        Ensemble.from_members(tables, fusion="union").close()
