"""Heads that share keys, packed into one: the same numbers without the copies."""

import pytest
import torch
from amounts import examples
from architectures import build
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from deepen_core.members.transformers import attention
from deepen_core.members.transformers.attention import pack_heads, packed_attention, unpack_heads
from deepen_core.members.transformers.causal import CausalMember


class Layer(torch.nn.Module):
    is_causal = True

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


@settings(max_examples=examples(60), deadline=None)
@given(
    sequences=st.integers(1, 4),
    groups=st.integers(1, 4),
    shared=st.integers(1, 3),
    count=st.integers(1, 40),
    past=st.integers(0, 20),
    boolean=st.booleans(),
    scaling=st.sampled_from([None, 0.3]),
)
def test_packed_heads_attend_as_they_do_apart(sequences, groups, shared, count, past, boolean, scaling):
    generator = torch.Generator().manual_seed(sequences * 1000 + count)
    query = torch.randn(sequences, groups * shared, count, 8, generator=generator)
    key, value = (torch.randn(sequences, shared, past + count, 8, generator=generator) for _ in range(2))
    seen = torch.rand(sequences, 1, count, past + count, generator=generator) < 0.6
    seen |= torch.eye(count, past + count, dtype=torch.bool)  # every id looks at something
    mask = seen if boolean else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    expected, _ = sdpa_attention_forward(Layer(groups), query, key, value, mask, scaling=scaling)
    found, weights = packed_attention(Layer(groups), query, key, value, mask, scaling=scaling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous()
    assert weights is None


def test_keys_are_not_copied_for_every_head(monkeypatch):
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *_, **__: pytest.fail("copied"))
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 5, 8)
    packed_attention(Layer(2), query, key, key, torch.zeros(2, 1, 3, 5))
    with pytest.raises(pytest.fail.Exception, match="copied"):  # without a mask there is nothing to gain
        packed_attention(Layer(2), query, key, key, None)


@pytest.mark.parametrize(("name", "packs"), [("llama", True), ("mistral", True), ("gpt2", False)])
def test_only_models_whose_heads_share_keys_are_packed(name, packs):
    model = build(name)
    assert pack_heads(model) is packs
    assert (model.config._attn_implementation == "sdpa") is not packs
    assert build(name).config._attn_implementation == "sdpa"  # no other model is touched
    if packs:
        unpack_heads(model)
        assert model.config._attn_implementation == "sdpa"


def test_an_attention_that_was_chosen_stays():
    model = build("llama")
    model.set_attn_implementation("eager")
    assert not pack_heads(model)
    assert model.config._attn_implementation == "eager"


def test_a_model_that_packing_does_not_suit_runs_without(monkeypatch):
    def wrong(module, query, key, value, mask, **options):
        found, weights = sdpa_attention_forward(module, query, key, value, mask, **options)
        return found if mask is None else found * 1.5, weights

    model = build("llama")
    with monkeypatch.context() as patch:
        patch.setattr(attention, "packed_attention", wrong)
        member = CausalMember("llama", model, None, 96)
        assert member.batching == "ragged"
    assert model.config._attn_implementation == "sdpa"
    assert pack_heads(build("llama"))  # the name means the right one again
