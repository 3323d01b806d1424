"""The last text stays in a member's cache for the next sequence, which may begin alike."""

from functools import cache

import pytest
import torch
from architectures import build
from hypothesis import given, settings
from hypothesis import strategies as st
from ids_parts import IdsSequence, check, check_read_ahead, made_up, member_of

from deepen_core.members.sequence import KEPT_TAIL
from deepen_core.members.transformers.kv_cache import RaggedCache

_built = cache(build)


def slots(member):
    return member._ways.short.cache.slots


def buffers(member):
    return [held for layer in member._ways.short.cache._held for held in (layer.keys, layer.values)]


def answered(member, ids, *, regularly=True):
    """Runs a sequence to its end."""
    sequence = IdsSequence(ids)
    logits = member.next_logits([sequence])
    sequence.end(regularly=regularly)
    return logits


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@settings(max_examples=25, deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 30), st.booleans(), st.booleans(), st.integers(1, 3)),
        min_size=2,
        max_size=6,
    )
)
def test_whatever_was_kept_logits_are_those_of_the_text_alone(name, turns):
    """Texts that share any number of ids, read ahead or not, ending regularly or not, alone or beside another one."""
    model = _built(name)
    member = member_of(model, 512)
    for shared, own, ahead, regularly, together in turns:
        sequences = [IdsSequence(made_up(shared, 5) + made_up(own + place, own)) for place in range(together)]
        if ahead and len(sequences[0].ids) > KEPT_TAIL + 1:
            check_read_ahead(model, member, sequences[0])
        check(model, sequences, member.next_logits(sequences))
        for sequence in sequences:
            sequence.ids.append(9)
        check(model, sequences, member.next_logits(sequences))
        for sequence in sequences:
            sequence.end(regularly=regularly)


@torch.inference_mode()
def test_a_text_that_goes_on_is_not_read_again():
    model = build("llama")
    member = member_of(model)
    first = made_up(60, 1)
    answered(member, first)
    assert [slot.ids for slot in slots(member)] == [first]
    ran = member.work.ids_run
    second = IdsSequence(first + made_up(10, 2))
    check(model, [second], member.next_logits([second]))
    assert member.work.ids_run - ran == 10
    assert member.work.ids_copied == 60
    assert [slot.ids for slot in slots(member)] == [second.ids]
    third = IdsSequence(first + made_up(10, 3))  # beside the one that has taken its place
    check(model, [second, third], member.next_logits([second, third]))
    assert member.work.ids_copied == 120


@torch.inference_mode()
@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_not_shared_is_cleared(ahead):
    """It may be NaN, which no mask cancels; beside a longer text, all its positions are looked at."""
    model = build("llama")
    member = member_of(model)
    for shared in (40, 0):
        text = made_up(80, 1)
        answered(member, text)
        for held in buffers(member):
            held[0, :, shared : len(text)] = torch.nan
        sequences = [IdsSequence(text[:shared] + made_up(5, 2)), IdsSequence(made_up(90, 3))]
        if ahead:
            check_read_ahead(model, member, sequences[0])
        check(model, sequences, member.next_logits(sequences))
        for sequence in sequences:
            sequence.end()
        assert slots(member) == []


@torch.inference_mode()
def test_only_a_text_that_ended_regularly_and_pays_off_is_kept():
    member = member_of(build("llama"))
    answered(member, made_up(60, 1), regularly=False)
    assert slots(member) == []
    answered(member, made_up(10, 1))
    assert slots(member) == []
    assert buffers(member) == []
    sequence = IdsSequence(made_up(60, 1))
    member.next_logits([sequence])
    del sequence
    assert slots(member) == []


@torch.inference_mode()
def test_a_kept_text_holds_no_more_than_itself_and_can_be_forgotten():
    member = member_of(build("llama"), 2048)
    sequences = [IdsSequence(made_up(1000 if place == 3 else 50, place)) for place in range(6)]
    member.next_logits(sequences)
    for sequence in sequences:
        sequence.end(regularly=True)
    (slot,) = slots(member)
    assert slot.ids == sequences[-1].ids
    assert slot.ahead is None
    assert all(held.shape[0] == 1 and held.shape[2] <= 4 * 64 for held in buffers(member))
    member.forget()
    assert (slots(member), buffers(member)) == ([], [])


@torch.inference_mode()
def test_a_slot_that_was_kept_is_not_freed_by_a_second_release():
    """Garbage collection frees what `release` has freed before."""
    member = member_of(build("llama"))
    sequence = IdsSequence(made_up(60, 1))
    member.next_logits([sequence])
    slot = sequence.cache
    sequence.end(regularly=True)
    slot.free()
    del sequence
    assert slots(member) == [slot]
    following = IdsSequence([*made_up(60, 1), 5])
    member.next_logits([following])
    slot.free()
    assert following.cache.held
    assert not slot.held


def test_other_caches_keep_nothing():
    """Those of encoder-decoder models, whose texts answer different inputs."""
    held = RaggedCache()
    with held.busy():
        slot = held.take()
        slot.ids = made_up(60, 1)
    slot.retire()
    assert held.slots == []
