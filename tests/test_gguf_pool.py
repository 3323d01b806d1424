"""The context of a GGUF member grows with its sequences, shares beginnings, frees what ends, and has a limit."""

import gc
import threading

import pytest
import torch
from ids_parts import IdsSequence, made_up, plain
from test_gguf import member_at
from transformers import AutoModelForCausalLM

from deepen_core import Ensemble
from deepen_core.errors import MemberError

pytest.importorskip("xllamacpp")


@pytest.fixture
def beta(gguf_files, monkeypatch):
    """With a context that begins small; llama.cpp makes none below 256 ids."""
    monkeypatch.setattr("deepen_core.members.llama_cpp.pool._PLACES", 256)
    monkeypatch.setattr("deepen_core.members.llama_cpp.pool._SEQUENCES", 2)
    return lambda **options: member_at(gguf_files["beta"], model_kwargs=options)


@pytest.fixture(scope="module")
def model(folders):
    return AutoModelForCausalLM.from_pretrained(folders["beta"]).eval()


def pool_of(member):
    return member._runner._pool


def right(model, sequences, logits):
    for sequence, found in zip(sequences, logits, strict=True):
        torch.testing.assert_close(found, plain(model, sequence.ids)[-1], atol=1e-4, rtol=0)


def test_it_grows_and_what_it_holds_moves(beta, model):
    member = beta()
    sequences = [IdsSequence(made_up(100, n)) for n in range(2)]
    right(model, sequences, member.next_logits(sequences))
    assert (pool_of(member).context.places, pool_of(member).context.sequences) == (256, 4)
    sequences += [IdsSequence(made_up(90, n)) for n in range(2, 9)]
    run = member.work.ids_run
    right(model, sequences, member.next_logits(sequences))
    assert pool_of(member).context.places >= 830
    assert pool_of(member).context.sequences >= 9
    assert member.work.ids_run - run == 7 * 90 + 2  # the first two were not run again
    for sequence in sequences:
        sequence.rewrite(3, made_up(2, len(sequence.ids)))
    right(model, sequences, member.next_logits(sequences))


def test_beginnings_take_no_place(beta, model):
    """Twelve sequences of 200 ids have 2,400, of which there is no room for more than 512."""
    member, start = beta(n_ctx=512), made_up(198, 1)
    sequences = [IdsSequence(start + made_up(2, n)) for n in range(2, 14)]
    right(model, sequences, member.next_logits(sequences))
    assert pool_of(member).context.places == 512
    assert member.work.ids_copied == 11 * 198


def test_the_last_sequence_takes_a_large_context_with_it(beta):
    member = beta()
    sequences = [IdsSequence(made_up(200, n)) for n in range(3)]
    member.next_logits(sequences)
    for sequence in sequences:
        sequence.cache.free()
        sequence.release()
    with pytest.raises(AssertionError, match="room was made"):
        pool_of(member).context.places  # noqa: B018


def test_slots_are_freed_by_other_threads_and_by_garbage_collection(beta, model):
    member = beta()
    sequences = [IdsSequence(made_up(20, n)) for n in range(3)]
    member.next_logits(sequences)
    with pool_of(member).busy():
        thread = threading.Thread(target=sequences[0].release)
        thread.start()
        thread.join()
        assert len(pool_of(member).slots) == 3
    assert len(pool_of(member).slots) == 2
    del sequences[:2]
    gc.collect()
    assert len(pool_of(member).slots) == 1
    right(model, sequences, member.next_logits(sequences))


def test_without_room_only_the_request_that_needs_it_fails(beta):
    """The others go on, with their answers as before."""
    member = beta(n_ctx=256)
    sequence, long = IdsSequence(made_up(100, 1)), IdsSequence(made_up(200, 2))
    before = member.next_logits([sequence])
    with pytest.raises(MemberError, match=r"no room for \d+ more ids: .* at most 256 .*n_ctx"):
        member.next_logits([long])
    torch.testing.assert_close(member.next_logits([sequence]), before, atol=1e-4, rtol=0)


def test_a_request_without_room_in_an_ensemble(gguf_files):
    config = {"model": str(gguf_files["beta"]), "model_kwargs": {"n_ctx": 256}}
    prompts = [f"{n} The quick brown fox jumps over the lazy dog. {n} " * 2 for n in range(6)]
    options = {"max_new_tokens": 40, "ignore_eos": True}
    with Ensemble.load([config], progress=False) as ensemble:
        alone = [ensemble.generate(prompt, **options).token_ids for prompt in prompts]
        handles = [ensemble.submit(prompt, **options) for prompt in prompts]
        right, failed = 0, 0
        for handle, expected in zip(handles, alone, strict=True):
            try:
                assert handle.result().token_ids == expected
                right += 1
            except MemberError as error:
                failed += "no room" in str(error)
        assert right
        assert failed
        assert ensemble.generate(prompts[0], **options).token_ids == alone[0]


def test_more_sequences_than_llama_cpp_can_have(beta, monkeypatch):
    monkeypatch.setattr("deepen_core.members.llama_cpp.pool.MOST_SEQUENCES", 3)
    member = beta()
    sequences = [IdsSequence(made_up(5, n)) for n in range(4)]
    assert len(member.next_logits(sequences[:3])) == 3
    with pytest.raises(MemberError, match="cannot have more: lower max_batch_size"):
        member.next_logits(sequences[3:])


def test_what_is_forgotten_is_computed_anew(beta, model):
    member, sequences = beta(), [IdsSequence(made_up(30, 1))]
    member.next_logits(sequences)
    member.forget()
    right(model, sequences, member.next_logits(sequences))
    assert member.work.ids_run == 60


@pytest.mark.parametrize("code", [-3, 2])
def test_a_failure_of_llama_cpp_is_told_and_leaves_nothing_behind(beta, model, monkeypatch, code):
    member, sequences = beta(), [IdsSequence(made_up(30, 1))]
    member.next_logits(sequences)
    sequences[0].rewrite(0, [5])
    with monkeypatch.context() as patch:
        patch.setattr(member._model.library, "llama_decode", lambda *_: code, raising=False)
        with pytest.raises(RuntimeError, match=f"llama_decode failed with {code}"):
            member.next_logits(sequences)
    right(model, sequences, member.next_logits(sequences))
