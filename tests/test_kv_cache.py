"""The ragged cache: no copies, bounded padding, memory given back, and nothing read of another sequence."""

import threading

import pytest
import torch
from architectures import build
from ids_parts import IdsSequence, check, made_up, member_of, plain

from deepen_core.members.transformers.kv_cache import RaggedCache, cache_option


@pytest.fixture
def llama():
    return build("llama")


def buffers(member):
    return [held for layer in member._ways.short.cache._held for held in (layer.keys, layer.values)]


def slots(member):
    return member._ways.short.cache.slots


def started(member, *texts):
    sequences = [IdsSequence(text) for text in texts]
    member.next_logits(sequences)
    return sequences


@torch.inference_mode()
def test_the_steady_state_is_one_forward_without_copies(llama):
    """Sequences that each gain one id: one forward a step, in the same memory, and nothing is run twice."""
    member = member_of(llama)
    sequences = started(member, *(made_up(3 + 4 * i, i) for i in range(6)))
    for sequence in sequences:
        sequence.ids.append(5)
    member.next_logits(sequences)
    held, before = [b.data_ptr() for b in buffers(member)], (member.work.forwards, member.work.ids_rerun)
    for step in range(8):
        for sequence in sequences:
            sequence.ids.append(7 + step)
        check(llama, sequences, member.next_logits(sequences))
    assert (member.work.forwards, member.work.ids_rerun) == (before[0] + 8, before[1])
    assert [b.data_ptr() for b in buffers(member)] == held


@torch.inference_mode()
@pytest.mark.parametrize("much", [20, 64])
def test_padding_is_bounded(llama, much):
    """One sequence with much to run does not make fifteen others run as much; one with a little does not cost a
    forward."""
    member = member_of(llama)
    sequences = started(member, *(made_up(9, i) for i in range(15)), made_up(8, 99))
    sequences[-1].ids += made_up(much, 3)
    for sequence in sequences[:-1]:
        sequence.ids.append(4)
    before = member.work.forwards
    check(llama, sequences, member.next_logits(sequences))
    assert member.work.forwards == before + 2
    assert member.work.ids_rerun < 40
    sequences[0].ids += [8, 9]
    member.next_logits(sequences)
    assert member.work.forwards == before + 3


@torch.inference_mode()
def test_sequences_that_leave_give_their_memory_back(llama):
    member = member_of(llama)
    sequences = started(member, *(made_up(5 + 3 * i, i) for i in range(12)), made_up(90, 50))
    most = buffers(member)[0].shape
    assert most[0] >= 13
    assert most[2] >= 90
    for sequence in sequences[1:-1:2] + sequences[-1:] + sequences[2:-1:2]:
        sequence.release()
    sequences[0].ids.append(9)
    check(llama, sequences[:1], member.next_logits(sequences[:1]))
    assert buffers(member)[0].shape[0] <= 4
    sequences[0].release()
    assert buffers(member) == []
    check(llama, started(member, [5, 6, 7]), plain(llama, [5, 6, 7])[-1:])


@torch.inference_mode()
@pytest.mark.parametrize("place", [0, 1, 3])
def test_nothing_of_another_sequence_is_read(llama, place):
    """What a sequence that went wrong leaves behind is not a number, which no mask would hide."""
    member = member_of(llama)
    sequences = started(member, *(made_up(n, n) for n in (40, 4, 50, 6)))
    bad = sequences.pop(place)
    for held in buffers(member):
        held[bad.cache.index, :, : len(bad.ids)] = float("nan")
    bad.release()
    sequences.append(IdsSequence(made_up(3, 5)))
    for step in range(3):
        check(llama, sequences, member.next_logits(sequences))
        for sequence in sequences:
            sequence.ids.append(4 + step)


@torch.inference_mode()
def test_a_forward_that_fails_is_made_up_for(llama, monkeypatch):
    member = member_of(llama)
    sequences = started(member, made_up(12, 1), made_up(7, 2), made_up(9, 3))
    sequences[0].rewrite(5, [4, 5])
    sequences[2].ids.append(6)
    with monkeypatch.context() as patch:
        patch.setattr(llama.model.layers[1].mlp, "forward", lambda states: states + states.new_zeros(3))
        with pytest.raises(RuntimeError):
            member.next_logits(sequences[::2])
    check(llama, sequences, member.next_logits(sequences))
    check(llama, [sequence := IdsSequence(made_up(12, 1) + [3] * 5)], member.next_logits([sequence]))


def test_sequences_are_freed_from_any_thread_while_others_run(llama):
    member = member_of(llama)
    texts = [made_up(4 + i, i) for i in range(12)]
    with torch.inference_mode():
        keep, *leaving = started(member, *texts)

    def free():
        for sequence in leaving:
            sequence.release()

    thread = threading.Thread(target=free)
    with torch.inference_mode():
        thread.start()
        for step in range(30):
            keep.ids.append(3 + step)
            check(llama, [keep], member.next_logits([keep]))
        thread.join()
        check(llama, [keep], member.next_logits([keep]))
    assert len(slots(member)) == 1


@torch.inference_mode()
def test_a_slot_that_is_freed_in_use_leaves_afterwards(llama):
    cache = RaggedCache()
    with cache.busy():
        first, second = cache.take(), cache.take()
        first.free()
        assert (first.index, second.index) == (0, 1)
    assert cache.slots == [second]
    assert second.index == 0


@torch.inference_mode()
def test_a_slot_outlives_neither_its_sequence_nor_a_second_release(llama):
    member = member_of(llama)
    first, second, third = started(member, made_up(5, 1), made_up(6, 2), made_up(7, 3))
    slot = second.cache
    second.release()
    slot.free()
    assert [s.index for s in slots(member)] == [0, 1]
    del first
    assert len(slots(member)) == 1
    check(llama, [third], member.next_logits([third]))


@torch.inference_mode()
def test_a_shared_beginning_is_copied(llama):
    """Logits are those of computing it, and afterwards the sequences do not disturb each other."""
    member = member_of(llama)
    beginning = made_up(40, 1)
    first = IdsSequence(beginning + made_up(5, 2))
    while member.prefill(first, 16):
        pass
    assert (member.work.ids_run, member.work.ids_copied) == (43, 0)
    sequences = [
        first,
        IdsSequence(beginning + made_up(9, 3)),
        IdsSequence(beginning[:20]),
        IdsSequence(beginning[:15]),
    ]
    assert member.prefill(sequences[1], 4) == 4
    assert (member.work.ids_run, member.work.ids_copied) == (47, 40)
    check(llama, sequences, member.next_logits(sequences))
    assert member.work.ids_copied == 40 + 18
    first.rewrite(30, made_up(3, 7))
    check(llama, sequences[:1], member.next_logits(sequences[:1]))
    for sequence in sequences:
        sequence.rewrite(1, made_up(2, 8))
    first.release()
    check(llama, sequences[1:], member.next_logits(sequences[1:]))
    # What `first` had changed is no beginning any more.
    late = IdsSequence([*beginning, 5, 6, 7])
    check(llama, [late], member.next_logits([late]))
    assert member.work.ids_copied == 40 + 18 + 40


@torch.inference_mode()
def test_prompts_that_begin_alike_are_run_once_in_one_call(llama):
    member = member_of(llama)
    beginning = made_up(48, 1)
    sequences = [IdsSequence(beginning + made_up(3, n)) for n in range(4)]
    check(llama, sequences, member.next_logits(sequences))
    assert member.work.ids_copied == 3 * 48
    assert member.work.ids_run == 48 + 4 * 3


def test_a_cache_is_given_by_the_name_that_a_model_has_for_it():
    class Old:
        def forward(self, input_ids, past_key_values=None, cache=None): ...

    class New:
        def forward(self, input_ids, cache=None, **options): ...

    class Wrapped:
        def forward(self, *args, **options): ...

    class Mamba:
        def forward(self, input_ids, cache_params=None, **options): ...

    class Rwkv:
        def forward(self, input_ids, state=None, **options): ...

    named = {Old: "past_key_values", New: "cache", Wrapped: "past_key_values", Mamba: "cache_params", Rwkv: "state"}
    assert {kind: cache_option(kind()) for kind in named} == named
