"""A prompt that is run ahead of its answer, and tells how likely its ids are."""

import itertools

import pytest
import torch
from architectures import build
from ids_parts import IdsSequence, check, check_read_ahead, made_up, member_of

from deepen_core.members.sequence import KEPT_TAIL
from deepen_core.members.transformers.ragged import RaggedForward


@torch.inference_mode()
@pytest.mark.parametrize(("length", "start"), [(3, 1), (4, 3), (40, 1), (40, 7), (90, 2)])
def test_it_is_a_prefill_that_tells_the_log_probabilities(length, start):
    model = build("llama")
    member = member_of(model)
    sequence = IdsSequence(made_up(length, 5))
    assert check_read_ahead(model, member, sequence, start)
    assert (member.work.forwards, member.work.ids_run) == (1, length - KEPT_TAIL)
    assert member.prefill(sequence, 100) == 0
    check(model, [sequence], member.next_logits([sequence]))
    assert (member.work.forwards, member.work.ids_run, member.work.ids_rerun) == (1, length, 0)
    assert sequence.logits_before is not None
    sequence.rewrite(3, [4, 5, 6, 7])
    check(model, [sequence], member.next_logits([sequence]))


@torch.inference_mode()
@pytest.mark.parametrize(("length", "start"), [(17, 1), (33, 1), (33, 18), (33, 32), (64, 17), (90, 2)])
def test_logits_that_would_not_fit_are_those_of_several_forwards(monkeypatch, length, start):
    """Of a prompt of 250 tokens, those of a vocabulary of 262,144 are 250 MiB."""
    monkeypatch.setattr("deepen_core.members.transformers.given_tokens._LOGITS", 1)
    model = build("gemma3")
    member, sequence = member_of(model), IdsSequence(made_up(length, 5))
    found = check_read_ahead(model, member, sequence, start)
    forwards = -(-length // 16)
    assert (member.work.forwards, member.work.ids_run, member.work.ids_rerun) == (forwards, length - KEPT_TAIL, 2)
    assert member.token_logprobs(sequence.ids, start) == pytest.approx(found, abs=1e-5)
    sequence.rewrite(1, [9])
    check(model, [sequence], member.next_logits([sequence]))
    assert sequence.logits_before is not None


@torch.inference_mode()
def test_an_answer_that_was_given_up_while_its_prompt_was_read_keeps_no_logits(monkeypatch):
    """A step that takes too long goes on."""
    member, sequence = member_of(build("llama")), IdsSequence(made_up(20, 5))
    member.warm_up()
    slots, run = [], RaggedForward.run

    def given_up(*args):
        slots.append(sequence.cache)
        sequence.release()
        return run(*args)

    monkeypatch.setattr(RaggedForward, "run", given_up)
    member.read_ahead(sequence, 1)
    assert [slot.ahead for slot in slots] == [None]


@torch.inference_mode()
def test_prompts_that_are_read_to_their_end_are_not_run_again():
    """Beside others that are, in any order; of one whose cache was taken away, nothing is left."""
    model = build("llama")
    member = member_of(model)
    for order in itertools.permutations(range(4)):
        read, changed, lost, _ = sequences = [IdsSequence(made_up(20 + n, n)) for n in range(4)]
        for sequence in (read, changed, lost):
            member.read_ahead(sequence, 1)
        changed.rewrite(1, [9])
        lost.release()
        before = member.work.ids_run
        asked = [sequences[place] for place in order]
        check(model, asked, member.next_logits(asked))
        assert member.work.ids_run - before == KEPT_TAIL + KEPT_TAIL + 22 + 23  # the read one's last ids count as run
        for sequence in sequences:
            sequence.ids.append(7)
        check(model, asked, member.next_logits(asked))
        assert not any(slot.ahead for slot in member._found.short.cache.slots)
        for sequence in sequences:
            sequence.release()


@torch.inference_mode()
def test_an_answer_that_ends_before_its_first_step_keeps_no_logits():
    """Its sequence may be kept for long, by a handle or an error."""
    member, sequence = member_of(build("llama")), IdsSequence(made_up(20, 5))
    member.read_ahead(sequence, 1)
    slot = sequence.cache
    assert slot.ahead is not None
    sequence.end()
    assert slot.ahead is None
    assert not sequence._recent


@torch.inference_mode()
def test_its_last_id_may_become_another():
    """The logits before the last ids that are pending are kept, as after any prefill."""
    model = build("llama")
    member = member_of(model)
    for length in (4, 40):
        sequence = IdsSequence(made_up(length, 5))
        member.read_ahead(sequence, 1)
        sequence.rewrite(2, [9])
        check(model, [sequence], member.next_logits([sequence]))
        assert sequence.logits_before is not None
        sequence.release()


@torch.inference_mode()
def test_nothing_is_copied_for_it_and_others_copy_from_it():
    """What another sequence holds of the same beginning has no log-probabilities."""
    model = build("gemma3")
    member = member_of(model)
    held, alike, last = (IdsSequence(made_up(40, 5) + made_up(n, n)) for n in (3, 9, 5))
    member.next_logits([held])
    check_read_ahead(model, member, alike)
    assert member.work.ids_copied == 0
    held.release()
    member.prefill(last, 100)
    assert member.work.ids_copied == 40
    check(model, [last, alike], member.next_logits([last, alike]))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_another_prompt_shares_is_copied_with_what_was_found(name):
    """The last shared id is run again, to look up the one after it."""
    model = build(name)
    member = member_of(model)
    first, alike, third, short = (
        IdsSequence(made_up(n, 5) + made_up(m, m)) for n, m in ((40, 3), (40, 9), (30, 4), (12, 6))
    )
    for sequence in (first, alike, third, short):
        check_read_ahead(model, member, sequence, 2)
    assert member.work.ids_copied == 39 + 29
    last = IdsSequence(alike.ids)
    check_read_ahead(model, member, last, 2)
    assert member.work.ids_copied == 39 + 29 + len(last.ids) - KEPT_TAIL - 1
    sequences = [first, alike, third, short, last]
    check(model, sequences, member.next_logits(sequences))
    other = IdsSequence(made_up(40, 5))
    check_read_ahead(model, member, other, 3)  # what was found begins at another place
    assert member.work.ids_copied == 39 + 29 + len(last.ids) - KEPT_TAIL - 1


@torch.inference_mode()
def test_one_place_of_its_logits_is_kept():
    """All of them are hundreds of megabytes, which a sequence would hold until its answer ends."""
    model = build("llama")
    member, sequence = member_of(model), IdsSequence(made_up(60, 5))
    member.read_ahead(sequence, 1)
    assert [len(kept.untyped_storage()) // 4 for kept in sequence._recent.values()] == [model.config.vocab_size]


@torch.inference_mode()
def test_a_forward_that_fails_leaves_nothing(monkeypatch):
    model = build("llama")
    member, sequence = member_of(model), IdsSequence(made_up(20, 5))
    member.warm_up()
    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1].mlp, "forward", lambda states: states + states.new_zeros(3))
        with pytest.raises(RuntimeError):
            member.read_ahead(sequence, 1)
    assert sequence.cached == 0
    check(model, [sequence], member.next_logits([sequence]))


@torch.inference_mode()
def test_a_prompt_is_read_from_its_beginning_after_a_failure(monkeypatch):
    """Whatever its slot holds already."""
    monkeypatch.setattr("deepen_core.members.transformers.given_tokens._LOGITS", 1)
    model = build("llama")
    member, sequence = member_of(model), IdsSequence(made_up(40, 5))
    member.warm_up()
    runs, run = [], RaggedForward.run

    def fails_once(*args):
        runs.append(args)
        if len(runs) == 2:
            raise RuntimeError("not yet")
        return run(*args)

    with monkeypatch.context() as patch:
        patch.setattr(RaggedForward, "run", fails_once)
        with pytest.raises(RuntimeError):
            member.read_ahead(sequence, 1)
    assert sequence.cache.ids
    check_read_ahead(model, member, sequence)
