"""A member that fails: the request it fails for is told or goes on without it, and nobody else notices."""

import gc
import weakref

import pytest
import torch
from scheduler_parts import FAILING, PROMPTS, fails_at, hook, sequences_held

from deepen_core.errors import DecodingError, MemberError, NonFiniteLogitsError

OPTIONS = {"max_new_tokens": 12, "ignore_eos": True, "temperature": 0.7, "seed": 2}
ERRORS = [
    RuntimeError("a kernel broke"),
    MemoryError("no room"),
    torch.OutOfMemoryError("CUDA out of memory"),
    KeyError(5),
]


@pytest.fixture
def ensemble(load):
    with load("alpha", "beta", max_batch_size=8, weights="static") as ensemble:
        yield ensemble


def spoils(member, prompt, value):
    """A `spoil` hook that puts a value into the logits of one prompt's sequences."""
    marked = fails_at(member, prompt, StopIteration())

    def spoil(sequences, logits):
        for sequence, found in zip(sequences, logits, strict=True):
            try:
                marked([sequence])
            except StopIteration:
                found[3] = value
        return logits

    return spoil


def ask_together(ensemble, prompts, **options):
    """Handles of requests that are decoded in one batch."""
    scheduler = ensemble._worker
    sequences = [ensemble._engine.decoder.start(p, ensemble_params(**options)) for p in prompts]
    return scheduler.submit(sequences, ensemble)


def ensemble_params(**options):
    from deepen_core import SamplingParams

    return SamplingParams(**{**OPTIONS, **options})


@pytest.mark.parametrize("tokens", [0, 4])
@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_the_failing_request_alone_is_told(ensemble, error, number, tokens):
    expected = ensemble.generate(list(PROMPTS), **OPTIONS)
    member = hook(ensemble, number)
    member.fail = fails_at(member, FAILING, error, tokens=tokens)
    first, *others, last = ask_together(ensemble, [FAILING, *PROMPTS, FAILING])
    for handle in (first, last):
        with pytest.raises(
            MemberError, match=f"Member '{member.name}' failed with .* tokens of the answer: {type(error).__name__}"
        ):
            handle.result()
        assert handle.done
    assert [h.result().text for h in others] == [e.text for e in expected]
    assert sequences_held(ensemble) == 0
    member.fail = lambda sequences: None
    assert ensemble.generate(FAILING, **OPTIONS).token_ids


def test_the_error_says_the_way_out(ensemble):
    for number, message in ((0, "It is the main member"), (1, "With on_member_error='drop'")):
        member = hook(ensemble, number)
        member.fail = fails_at(member, FAILING, MemoryError("no room"))
        with pytest.raises(MemberError, match=rf"MemoryError: no room\. Lower max_batch_size.*{message}") as caught:
            ensemble.generate(FAILING, **OPTIONS)
        assert isinstance(caught.value.__cause__, MemoryError)
        member.fail = lambda sequences: None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("number", [0, 1])
def test_logits_that_are_no_numbers(ensemble, number, value):
    expected = ensemble.generate(list(PROMPTS), **OPTIONS)
    member = hook(ensemble, number)
    member.spoil = spoils(member, FAILING, value)
    first, *others = ask_together(ensemble, [FAILING, *PROMPTS])
    with pytest.raises(NonFiniteLogitsError, match=f"Member '{member.name}' returned logits whose largest is {value}"):
        first.result()
    assert [h.result().text for h in others] == [e.text for e in expected]


def test_a_dropped_member_has_no_more_say(load, ensemble):
    """From the first token on, the answer is main's alone; from a later one on, it is the same up to there."""
    with load("alpha") as alone:
        expected = alone.generate(FAILING, **OPTIONS)
    together = ensemble.generate(FAILING, **OPTIONS)
    alpha, beta = hook(ensemble, 0), hook(ensemble, 1)
    beta.fail = fails_at(beta, FAILING, RuntimeError("a kernel broke"))
    first, other = ask_together(ensemble, [FAILING, PROMPTS[0]], on_member_error="drop")
    answer = first.result()
    assert answer.token_ids == expected.token_ids != together.token_ids
    assert answer.warnings == [
        "Member 'beta' failed and was dropped from token 1 of the answer on: RuntimeError: a kernel broke"
    ]
    assert [w.name for w in answer.member_work] == ["alpha", "beta"]
    assert not other.result().warnings
    assert alpha.forwards == [2] * OPTIONS["max_new_tokens"], "both are decoded together all the same"

    asked = []
    beta.fail = lambda sequences: (
        asked.append(len(sequences)) or (len(asked) > 3 and fails_at(beta, FAILING, ValueError("x"))(sequences))
    )
    late = ensemble.generate(FAILING, on_member_error="drop", **OPTIONS)
    assert late.token_ids[:3] == together.token_ids[:3]
    assert len(late.token_ids) == OPTIONS["max_new_tokens"]
    assert len(late.warnings) == 1
    assert len(asked) == 4, "a dropped member is not run again"


@pytest.mark.parametrize("prompts", [[FAILING], [FAILING, PROMPTS[0]]], ids=["alone", "with another"])
def test_an_error_holds_nothing_of_the_forward(ensemble, prompts):
    """Else what did not fit into memory would still fill it while the others are run again."""
    beta, held = hook(ensemble, 1), []
    fails = fails_at(beta, FAILING, torch.OutOfMemoryError("no room"))

    def fail(sequences):
        assert all(reference() is None for reference in held), "the next forward finds the last one's tensors"
        computed = torch.zeros(10)
        held.append(weakref.ref(computed))
        fails(sequences)

    beta.fail = fail
    handle, *_ = ask_together(ensemble, prompts)
    with pytest.raises(MemberError) as caught:
        handle.result()
    assert caught.value.__cause__ is not None
    assert held[0]() is None


def test_main_cannot_be_dropped(ensemble):
    alpha = hook(ensemble, 0)
    alpha.fail = fails_at(alpha, FAILING, RuntimeError("a kernel broke"))
    with pytest.raises(MemberError, match="It is the main member"):
        ensemble.generate(FAILING, on_member_error="drop", **OPTIONS)


def test_the_request_overrules_the_ensemble(load):
    with load("alpha", "beta", on_member_error="drop") as ensemble:
        beta = hook(ensemble, 1)
        beta.fail = fails_at(beta, FAILING, RuntimeError("a kernel broke"))
        assert ensemble.generate(FAILING, **OPTIONS).warnings
        with pytest.raises(MemberError):
            ensemble.generate(FAILING, on_member_error="raise", **OPTIONS)


def test_a_failure_while_the_prompt_is_read(ensemble):
    long = FAILING + " and the dog sleeps" * 10
    expected = ensemble.generate(PROMPTS[0], **OPTIONS)
    beta = hook(ensemble, 1)

    def fail(sequences):
        if sequences[0].pending > 40:
            raise RuntimeError("a kernel broke")

    beta.fail = fail
    first, other = ask_together(ensemble, [long, PROMPTS[0]])
    with pytest.raises(MemberError, match="and 0 tokens of the answer"):
        first.result()
    assert other.result().text == expected.text
    assert ensemble.generate(long, on_member_error="drop", **OPTIONS).warnings


def test_a_failure_while_a_prompt_is_read_to_weigh_the_members(load):
    """Beside answers that go on, and others whose prompts are read too."""
    with load("alpha", "beta", max_batch_size=8, weights="context") as ensemble:
        expected = ensemble.generate([FAILING, *PROMPTS], **OPTIONS)
        for forward in ensemble._engine.decoder._runners.each:
            forward._likelihoods.clear()  # of prompts that were read
        beta = hook(ensemble, 1)
        beta.fail = fails_at(beta, FAILING, RuntimeError("a kernel broke"))
        first, *others, last = ask_together(ensemble, [FAILING, *PROMPTS, FAILING])
        for handle in (first, last):
            with pytest.raises(MemberError, match="and 0 tokens of the answer: RuntimeError"):
                handle.result()
        assert [h.result().text for h in others] == [e.text for e in expected[1:]]
        alone = ensemble.generate(FAILING, on_member_error="drop", **OPTIONS)
        assert "'beta' failed and was dropped from token 1" in alone.warnings[-1]
        assert sequences_held(ensemble) == 0
        beta.fail = lambda _: None
        assert ensemble.generate(FAILING, **OPTIONS).text == expected[0].text


@pytest.mark.parametrize("number", [0, 1])
def test_a_forward_that_broke_off_half_way_leaves_no_trace(ensemble, number, request):
    """It has written to the caches of all sequences before it fails; the others' answers are the serial ones."""
    expected = ensemble.generate(list(PROMPTS), **OPTIONS)
    model, runs, broken = ensemble._engine.members[number].model, [], []
    last_block = (model.transformer.h if number == 0 else model.model.layers)[-1]

    def breaks(_block, states, *_):
        runs.append(len(states[0]))
        if runs[-1] > 1 and len(runs) % 4 == 0:
            broken.append(runs[-1])
            raise RuntimeError("a kernel broke")

    handle = last_block.register_forward_pre_hook(breaks)
    request.addfinalizer(handle.remove)
    answers = [h.result() for h in ask_together(ensemble, PROMPTS)]
    assert len(broken) > 1
    assert [a.text for a in answers] == [e.text for e in expected]
    assert not any(a.warnings for a in answers)


def test_rows_that_fit_into_memory_one_by_one_are_run_in_smaller_groups(ensemble):
    expected = ensemble.generate(list(PROMPTS), **OPTIONS)
    beta, failed = hook(ensemble, 1), []

    def fail(sequences):
        if len(sequences) > 2:
            failed.append(len(sequences))
            raise torch.OutOfMemoryError("no room")

    beta.fail = fail
    answers = [h.result() for h in ask_together(ensemble, PROMPTS)]
    assert [a.text for a in answers] == [e.text for e in expected]
    assert failed == [6, 3, 3], "it is not tried again at every step"
    assert not any(a.warnings for a in answers)


def test_fusion_that_fails_for_one_sequence(ensemble, monkeypatch):
    """Fusion runs all sequences at once; the one at fault is found."""
    expected = ensemble.generate(PROMPTS[1], **OPTIONS)
    fuse, calls = ensemble._engine.fusion.fuse, []

    def failing(inputs):
        calls.append(len(inputs.weights))
        if len(inputs.weights) > 1 or len(calls) < 4:
            raise IndexError("a sequence too many")
        return fuse(inputs)

    monkeypatch.setattr(ensemble._engine.fusion, "fuse", failing)
    first, other = ask_together(ensemble, [FAILING, PROMPTS[1]])
    with pytest.raises(DecodingError, match="failed at token 1 of the answer: IndexError: a sequence too many"):
        first.result()
    assert calls[:3] == [2, 1, 1]
    with pytest.raises(DecodingError, match="token 1 of the answer"):
        other.result()
    assert ensemble.generate(PROMPTS[1], **OPTIONS).text == expected.text


def test_a_choice_that_fails(ensemble, monkeypatch):
    expected = ensemble.generate(PROMPTS[1], **OPTIONS)
    handles = []
    choose = type(ensemble._engine.decoder.start("x", ensemble_params()).sampler).choose

    def failing(sampler, logits, history, answer):
        if sampler._penalty is not None:
            raise IndexError("no such token")
        return choose(sampler, logits, history, answer)

    monkeypatch.setattr("deepen_core.sampling.sampler.Sampler.choose", failing)
    handles = [*ask_together(ensemble, [FAILING], repetition_penalty=1.2), *ask_together(ensemble, [PROMPTS[1]])]
    with pytest.raises(DecodingError, match="no such token"):
        handles[0].result()
    assert handles[1].result().text == expected.text


def test_kept_errors_keep_no_tensors(load):
    """Neither of the requests that failed, nor of those that were decoded with them."""

    def tensors():  # as large as logits
        gc.collect()
        return sum(type(one) is torch.Tensor and one.numel() > 100 for one in gc.get_objects())

    with load("alpha", "beta", max_batch_size=8, weights="static") as ensemble:
        beta = hook(ensemble, 1)

        def fail(sequences):  # with an exception of its own each time
            fails_at(beta, FAILING, RuntimeError("injected"), tokens=3)(sequences)

        beta.fail = fail
        prompts = [*PROMPTS, FAILING]
        ensemble.generate(prompts, return_exceptions=True, **OPTIONS)
        before = tensors()
        kept = [ensemble.generate(prompts, return_exceptions=True, **OPTIONS) for _ in range(5)]
        assert all(isinstance(answers[-1], MemberError) and not answers[-1].__traceback__ for answers in kept)
        assert all(answers[-1].__cause__.__traceback__ for answers in kept), "where the member failed is still told"
        for _ in range(5):
            with pytest.raises(MemberError) as caught:
                ensemble.generate(FAILING, **OPTIONS)
            kept.append(caught)
        assert tensors() <= before


def test_kept_handles_keep_no_tensors(ensemble):
    kept = ask_together(ensemble, PROMPTS)
    assert all(handle.result() for handle in kept)
    parts = [part for handle in kept for part in handle._request.sequence.member_sequences]
    assert not any(part.cache or part.trail or part.logits_after is not None for part in parts)
