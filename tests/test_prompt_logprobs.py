"""Texts that a member reads one after the other, to tell how likely their ids are."""

from functools import cache

import pytest
import torch
from architectures import build
from hypothesis import given, settings
from hypothesis import strategies as st
from ids_parts import IdsSequence, made_up, member_of

_built = cache(build)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma3", "dynamic", "mamba"])
@settings(max_examples=20, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(0, 60), st.integers(3, 30), st.integers(1, 3)), min_size=2, max_size=5))
def test_texts_are_read_one_after_the_other_as_each_alone(name, shapes):
    """Whatever a text shares with the last one."""
    model = _built(name)
    member = member_of(model, 512)
    for shared, own, start in shapes:
        ids = made_up(shared, 5) + made_up(own, own)
        found = member.prompt_logprobs(ids, start)
        assert found == pytest.approx(member.token_logprobs(ids, start), abs=3e-5)
        assert len(found) == len(ids) - start


@torch.inference_mode()
def test_the_text_that_is_kept_is_copied_and_forgotten(monkeypatch):
    model = build("llama")
    member = member_of(model)
    common = made_up(50, 5)
    member.prompt_logprobs([*common, 7, 8], 1)
    member.prompt_logprobs([*common, 9], 1)
    assert member.work.ids_copied == 49
    member.forget()
    member.prompt_logprobs([*common, 9], 1)
    assert member.work.ids_copied == 49
    with monkeypatch.context() as patch:  # it has written to the first layer
        patch.setattr(model.model.layers[1].mlp, "forward", lambda states: states + states.new_zeros(3))
        with pytest.raises(RuntimeError):
            member.prompt_logprobs([*common, 4], 1)
    assert member.prompt_logprobs([*common, 9], 1) == pytest.approx(member.token_logprobs([*common, 9], 1), abs=1e-5)
    assert member.work.ids_copied == 49


@torch.inference_mode()
def test_texts_of_two_beginnings_in_turn():
    """Long prompts of a batch are cut at two places."""
    member = member_of(build("llama"), 512)
    beginnings = [made_up(50, 5), made_up(40, 6)]
    texts = [[*beginnings[number % 2], 7, 3 + number] for number in range(6)]
    found = [member.prompt_logprobs(ids, 1) for ids in texts]
    assert member.work.ids_copied == 2 * (50 + 40)  # the last shared id is run again: 51 and 41 are shared
    member.prompt_logprobs(made_up(45, 9), 1)  # a third one: the text that was read before the last one goes
    member.prompt_logprobs([*beginnings[0], 7, 30], 1)
    assert member.work.ids_copied == 180
    for ids, logprobs in zip(texts, found, strict=True):
        assert logprobs == pytest.approx(member.token_logprobs(ids, 1), abs=3e-5)


@torch.inference_mode()
def test_a_long_text_before_changes_nothing():
    """Dynamic positions remember the longest text that they saw."""
    member = member_of(build("dynamic"), 512)
    ids = made_up(120, 5)
    expected = member.token_logprobs(ids, 1)
    member.next_logits([IdsSequence(made_up(200, 6))])
    assert member.token_logprobs(ids, 1) == expected
