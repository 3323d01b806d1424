"""The batch without its thread: whatever joins, leaves and waits, every sequence's answer is the one it has alone."""

import functools

import pytest
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_parts import PROMPTS, hook

from deepen_core import SamplingParams
from deepen_core.engine.handle import Request
from deepen_core.engine.scheduler import Scheduler
from deepen_core.errors import ClosedError, MemberError

OPTIONS = {"max_new_tokens": 6, "ignore_eos": True}
LONG = "The quick brown fox jumps over the lazy dog. " * 4


@functools.cache
def alone(pair, prompt, **options):
    return pair.generate(prompt, **{**OPTIONS, **options}).token_ids


def ask(ensemble, batch, prompt, **options):
    request = Request(ensemble._engine.decoder.start(prompt, SamplingParams(**{**OPTIONS, **options})))
    batch.add(request)
    return request


def run_out(batch):
    for _ in range(2000):
        if batch.idle:
            return
        batch.step()
    pytest.fail("the batch does not come to an end")


def holds_nothing(request):
    return all(side is None or side.cache is None for side in request.sequence.member_sequences)


actions = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([*PROMPTS, LONG])),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("step"), st.integers(1, 4)),
)


@settings(max_examples=examples(25), deadline=None)
@given(plan=st.lists(actions, max_size=14), size=st.integers(1, 4), budget=st.sampled_from([1, 7, 256]))
def test_any_interleaving_gives_the_serial_answers(pair, plan, size, budget):
    batch = Scheduler(pair._engine.decoder, size, budget)
    asked = []
    for action, value in plan:
        if action == "ask":
            asked.append((value, ask(pair, batch, value)))
        elif action == "cancel" and asked:
            asked[value % len(asked)][1].cancelled = True
        elif action == "step":
            for _ in range(value):
                batch.step()
                assert batch.sequences_held <= size
    run_out(batch)
    for prompt, request in asked:
        expected, answer = alone(pair, prompt), request.mail.answer()
        assert answer.token_ids == expected[: len(answer.token_ids)]
        if answer.finish_reason != "cancelled":
            assert answer.token_ids == expected
        assert holds_nothing(request)


def test_first_come_first_admitted(pair):
    batch = Scheduler(pair._engine.decoder, 2)
    requests = [ask(pair, batch, prompt) for prompt in PROMPTS]
    ended = []
    while not batch.idle:
        batch.step()
        ended += [r for r in requests if r.mail.ended() and r not in ended]
    assert ended == requests


def test_a_cancelled_row_is_free_within_two_steps(pair):
    batch = Scheduler(pair._engine.decoder, 2, budget=8)
    running, reading = ask(pair, batch, "The dog", max_new_tokens=50), ask(pair, batch, LONG)
    waiting, other = ask(pair, batch, "Once"), ask(pair, batch, "Once upon")
    for _ in range(4):
        batch.step()
    assert not holds_nothing(running)
    assert not holds_nothing(reading)
    assert batch.sequences_held == 2
    for request in (running, reading, waiting):
        request.cancelled = True
    batch.step()
    for request in (running, reading, waiting):
        assert request.mail.answer().finish_reason == "cancelled"
        assert holds_nothing(request)
    assert running.mail.answer().token_ids
    assert waiting.mail.answer().token_ids == []
    run_out(batch)
    assert other.mail.answer().token_ids == alone(pair, "Once upon")


def test_a_long_prompt_does_not_stall_running_sequences(load):
    """While it is read, in pieces within the budget, every running sequence gets a token at every step."""
    with load("alpha", "beta", weights="static") as ensemble:
        members = [hook(ensemble, 0), hook(ensemble, 1)]
        batch = Scheduler(ensemble._engine.decoder, 8, budget=16)
        running = [ask(ensemble, batch, prompt, max_new_tokens=100) for prompt in PROMPTS[:3]]
        while not all(r.sequence.token_ids for r in running):
            batch.step()
        long = ask(ensemble, batch, LONG)
        steps = 0
        while not long.sequence.token_ids:
            before = [len(r.sequence.token_ids) for r in running]
            for member in members:
                member.prefills.clear()
            batch.step()
            steps += 1
            assert [len(r.sequence.token_ids) for r in running] == [n + 1 for n in before]
            assert all(sum(member.prefills) <= 16 for member in members)
        assert steps >= long.sequence.main_sequence.prompt_tokens // 16
        for request in running:
            request.cancelled = True
        run_out(batch)
        assert long.mail.answer().token_ids == ensemble.generate(LONG, **OPTIONS).token_ids


def test_short_prompts_are_run_together_and_apart_from_running_sequences(load):
    """One forward each would hold up all others, and so would a forward in which all have the length of a prompt."""
    with load("alpha", "beta", weights="static") as ensemble:
        members = [hook(ensemble, 0), hook(ensemble, 1)]
        batch = Scheduler(ensemble._engine.decoder, 8)
        running = [ask(ensemble, batch, prompt, max_new_tokens=100) for prompt in PROMPTS[:2]]
        while not all(r.sequence.token_ids for r in running):
            batch.step()
        new = [ask(ensemble, batch, prompt) for prompt in PROMPTS[2:5]]
        batch.step()
        for member in members:
            member.forwards.clear()
            member.prefills.clear()
        batch.step()
        assert [member.forwards for member in members] == [[2, 3], [2, 3]]
        assert not any(member.prefills for member in members)
        assert all(len(request.sequence.token_ids) == 1 for request in new)
        for request in running:
            request.cancelled = True
        run_out(batch)
        assert [r.mail.answer().token_ids for r in new] == [alone(ensemble, p) for p in PROMPTS[2:5]]


def test_a_request_that_failed_is_told_even_if_the_rest_of_its_step_crashes(load, monkeypatch):
    with load("alpha", "beta", weights="static") as ensemble:
        member, batch = hook(ensemble, 0), Scheduler(ensemble._engine.decoder, 8)
        request = ask(ensemble, batch, PROMPTS[0])
        while not request.sequence.token_ids:
            batch.step()

        def fail(_sequences):
            raise RuntimeError("injected")

        def crash():
            raise KeyboardInterrupt

        member.fail = fail
        monkeypatch.setattr(batch, "_prefill", crash)
        with pytest.raises(KeyboardInterrupt):
            batch.step()
        with pytest.raises(MemberError, match="injected"):
            request.mail.answer()


@pytest.mark.parametrize(("running", "long", "most"), [(0, 1, 32), (1, 1, 8), (1, 3, 24), (1, 6, 32), (3, 3, 8)])
def test_pieces_are_larger_where_fewer_rows_wait_than_prompts(load, running, long, most):
    """Up to four times the budget: larger pieces are read faster, and hold up few."""
    with load("alpha", "beta", weights="static") as ensemble:
        alpha, batch = hook(ensemble, 0), Scheduler(ensemble._engine.decoder, 16, budget=8)
        sequences = [ask(ensemble, batch, prompt, max_new_tokens=100).sequence for prompt in PROMPTS[:running]]
        while not all(sequence.token_ids for sequence in sequences):
            batch.step()
        for number in range(long):
            ask(ensemble, batch, f"{number}. {LONG}")
        alpha.prefills.clear()
        batch.step()
        assert sum(alpha.prefills) <= most
        assert sum(alpha.prefills) > most - 8


def test_neither_short_nor_long_prompts_starve(pair):
    """Short prompts that keep coming pass a long one, which is read all the same."""
    batch = Scheduler(pair._engine.decoder, 8, budget=8)
    long = ask(pair, batch, LONG, max_new_tokens=1)
    batch.step()
    short = ask(pair, batch, "The quick brown fox jumps over", max_new_tokens=1)
    steps = 0
    while not short.mail.ended():
        batch.step()
        steps += 1
    assert not long.sequence.token_ids
    assert steps < 8
    steps = 0
    while not long.mail.ended():
        ask(pair, batch, "The lazy dog sleeps over the fox. ", max_new_tokens=1)
        batch.step()
        steps += 1
        assert steps < 60, "the long prompt starves"


def test_an_equal_prompt_waits_for_the_one_being_read(load):
    """So that what it shares can be copied; prompts that share nothing do not wait."""
    pair = load("alpha", "beta", weights="static")
    batch = Scheduler(pair._engine.decoder, 8, budget=8)
    more = LONG + "Numbers: 1, 22, 333, 4444, 55555. Sums: 3.14"  # so that the second has less left
    first, second = ask(pair, batch, more), ask(pair, batch, LONG)
    while first.sequence.pending > 90:
        batch.step()
        assert not second.sequence.begun
    other = ask(pair, batch, "Numbers: 1, 22, 333, 4444, 55555. Sums: 3.14 + 2.71 = 5.85;")
    batch.step()
    batch.step()
    assert other.sequence.begun
    assert not second.sequence.begun
    run_out(batch)
    assert first.mail.answer().token_ids == alone(pair, more)
    assert second.mail.answer().token_ids == alone(pair, LONG)


def test_short_prompts_are_run_with_the_first_step(load):
    with load("alpha", "beta", weights="static") as ensemble:
        member = hook(ensemble, 0)
        batch = Scheduler(ensemble._engine.decoder, 8)
        for prompt in PROMPTS[:2]:
            ask(ensemble, batch, prompt, max_new_tokens=2)
        batch.step()
        batch.step()
        assert member.prefills == []
        assert sum(member.forwards) == 2


def test_a_timeout_counts_in_the_queue(pair):
    batch = Scheduler(pair._engine.decoder, 1)
    running, waiting = ask(pair, batch, "The dog", max_new_tokens=20), ask(pair, batch, "Once", timeout=3600)
    batch.step()
    batch.step()
    waiting.sequence.submitted -= 3600
    batch.step()
    answer = waiting.mail.answer()
    assert (answer.finish_reason, answer.text) == ("timeout", "")
    assert answer.timings.queue_s >= 3600
    assert not running.mail.ended()
    running.sequence.submitted -= 3600
    run_out(batch)
    assert running.mail.answer().finish_reason == "length"


def test_abandoned_requests_are_told(pair):
    from deepen_core.engine.worker import closed_error

    batch = Scheduler(pair._engine.decoder, 1)
    requests = [ask(pair, batch, prompt) for prompt in PROMPTS[:3]]
    batch.step()
    batch.abandon(closed_error)
    assert batch.idle
    for request in requests:
        with pytest.raises(ClosedError, match="load it again"):
            request.mail.answer()
        assert holds_nothing(request)
