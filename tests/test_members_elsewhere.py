"""Members that compute elsewhere: steps that run at the same time, and replies of the most probable tokens only."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_member import TableMember
from tiny import CORPUS, byte_level, sentencepiece_bpe

from deepen_core import Ensemble
from deepen_core.evaluation.settings import default_weights
from deepen_core.members.top_logprobs import dense_logits

PROMPT = CORPUS[0][:12]


class Elsewhere(TableMember):
    """Begins a step when told, and writes down when."""

    def __init__(self, name, tokenizer, texts, diary):
        super().__init__(name, tokenizer, texts)
        self.diary = diary

    def begin(self, sequences):
        self.diary.append((self.name, "begins", len(sequences)))

    def next_logits(self, sequences):
        self.diary.append((self.name, "is waited for", len(sequences)))
        return super().next_logits(sequences)


def pair(diary):
    return [Elsewhere("a", byte_level(), CORPUS[:4], diary), Elsewhere("b", sentencepiece_bpe(), CORPUS[4:7], diary)]


def test_all_members_begin_a_step_before_one_is_waited_for():
    diary = []
    with Ensemble.from_members(pair(diary), weights="static") as ensemble:
        answer = ensemble.generate(PROMPT, max_tokens=3, seed=0)
    assert answer.usage.completion_tokens >= 1
    steps = [diary[start : start + 4] for start in range(0, len(diary), 4)]
    together = [(name, said) for said in ("begins", "is waited for") for name in "ab"]
    assert all([entry[:2] for entry in step] == together for step in steps)


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize(
    ("fusion", "by_token", "default"),
    [("deepen", True, "adaptive"), ("deepen", False, "context"), ("union", True, "static"), ("union", False, "static")],
)
def test_prompts_are_not_read_by_default_where_each_token_takes_a_request(fusion, by_token, default, timeout):
    """A policy that is asked for stays. An evaluation calls the default the same."""
    members = pair([])
    members[1].asks_by_token = by_token
    for weights, policy in ((None, default), ("perplexity", "perplexity"), ([0.5, 0.5], "static")):
        with Ensemble.from_members(members, fusion=fusion, weights=weights, step_timeout=timeout) as ensemble:
            assert ensemble.info.weight_policy == policy
            known = ensemble._engine.members
            assert default_weights(fusion, known) == ((0.5, 0.5) if default == "static" else default)


def test_a_member_that_a_gate_skips_does_not_begin():
    diary = []
    with Ensemble.from_members(pair(diary), gate=0.0) as ensemble:
        ensemble.generate(PROMPT, max_tokens=3, seed=0)
    assert {entry[0] for entry in diary} == {"a"}


@given(st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))), st.integers(0, 99))
def test_the_rest_is_shared_by_the_tokens_that_are_not_known(shape, seed):
    size, known = shape
    logprobs = torch.log_softmax(torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * 4, -1)
    top = logprobs.topk(known, dim=-1)
    dense = dense_logits(top.indices, top.values, size)
    assert dense.dtype == torch.float32
    assert dense.shape == (3, size)
    assert torch.equal(dense.gather(-1, top.indices), top.values)
    assert torch.equal(dense.argmax(-1), top.indices[:, 0])
    torch.testing.assert_close(dense.exp().sum(-1), torch.ones(3), atol=1e-5, rtol=0)
    if known == size:
        assert torch.equal(dense, logprobs)


def test_rounding_leaves_no_unknown_token_above_a_known_one_or_impossible():
    sure = torch.tensor([[0.0, -40.0]])
    dense = dense_logits(torch.tensor([[3, 1]]), sure, 5)
    assert dense[0, 3] == 0.0
    assert dense[0, 0] == -40.0
    assert dense[0, [0, 2, 4]].isfinite().all()


@pytest.mark.parametrize("known", [0, 6])
def test_a_reply_of_no_token_or_of_too_many_is_refused(known):
    with pytest.raises(ValueError, match=f"{known} tokens are known of a vocabulary of 5"):
        dense_logits(torch.zeros(1, known, dtype=torch.long), torch.zeros(1, known), 5)
