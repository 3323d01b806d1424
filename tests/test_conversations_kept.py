"""What the last answer has left serves the next prompt, and changes nothing in its answer."""

import asyncio
import threading

import pytest
import torch
from scheduler_parts import fails_at, hook

from deepen_core.errors import MemberError

NOTES = "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not. " * 2
OPTIONS = {"max_new_tokens": 6, "ignore_eos": True, "logprobs": 0}


def ids_run(ensemble):
    return sum(member.work.ids_run for member in ensemble._engine.members)


def turns(ensemble, *, chat, kept):
    """Answers of three turns, and how many ids were run for each."""
    said = [{"role": "user", "content": NOTES}] if chat else NOTES
    found, ran = [], []
    for turn in range(3):
        if not kept:
            ensemble.forget()
        before = ids_run(ensemble)
        found.append(ensemble.generate(said, **OPTIONS))
        ran.append(ids_run(ensemble) - before)
        more = f" And {turn}?"
        if chat:
            answer = {"role": "assistant", "content": found[-1].text}
            said = [*said, answer, {"role": "user", "content": more}]
        else:
            said += found[-1].text + more
    return found, ran


def check_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert [t.logprob for t in one.logprobs] == pytest.approx([t.logprob for t in other.logprobs], abs=1e-4)


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("weights", ["context", "adaptive", "perplexity"])
def test_a_conversation_is_read_from_where_it_goes_on(load, weights, chat):
    with load("alpha", "beta", weights=weights) as ensemble:
        expected, anew = turns(ensemble, chat=chat, kept=False)
        ensemble.forget()
        found, ran = turns(ensemble, chat=chat, kept=True)
    check_same(found, expected)
    assert ran[0] == anew[0]
    assert all(kept < again / 2 for kept, again in zip(ran[1:], anew[1:], strict=True))


@pytest.mark.parametrize("weights", ["context", "adaptive"])
def test_a_prompt_that_is_asked_again_has_the_same_answer_to_the_last_bit(load, weights):
    """Alone, and after a longer text that begins with it."""
    with load("alpha", "beta", weights=weights) as ensemble:
        ensemble.generate(NOTES, **OPTIONS)  # weighs the members
        first = ensemble.generate(NOTES, **OPTIONS)
        again = ensemble.generate(NOTES, **OPTIONS)
        ensemble.generate(f"{NOTES}{first.text} And what then?", **OPTIONS)
        found = ensemble.generate(NOTES, **OPTIONS)
    for other in (again, found):
        assert [t.logprob for t in other.logprobs] == [t.logprob for t in first.logprobs]


def test_streams_and_tasks_leave_their_text_too(load):
    with load("alpha", "beta") as ensemble:
        for answer in (
            lambda: list(ensemble.stream(NOTES, **OPTIONS)),
            lambda: next(iter(ensemble.stream(NOTES, **OPTIONS))),  # closed by garbage collection
            lambda: asyncio.run(ensemble.agenerate(NOTES, **OPTIONS)),
            lambda: ensemble.generate([NOTES, f"{NOTES}The"], **OPTIONS),
        ):
            ensemble.forget()
            answer()
            before = ids_run(ensemble)
            ensemble.generate(f"{NOTES}And what then?", **OPTIONS)
            assert ids_run(ensemble) - before < 60


def test_nothing_of_an_answer_that_failed_is_used_again(load):
    with load("alpha", "beta", weights="adaptive") as ensemble:
        first = ensemble.generate(NOTES, **OPTIONS)
        alone = ids_run(ensemble)
        beta = hook(ensemble, 1)
        ensemble.forget()
        beta.fail = fails_at(beta, NOTES, RuntimeError("a kernel broke"), tokens=2)
        with pytest.raises(MemberError, match="a kernel broke"):
            ensemble.generate(NOTES, **OPTIONS)
        beta.fail = lambda _: None
        before = ids_run(ensemble)
        check_same([ensemble.generate(NOTES, **OPTIONS)], [first])
        assert ids_run(ensemble) - before == alone


def test_a_deterministic_answer_uses_nothing_and_leaves_nothing(load):
    options = {**OPTIONS, "deterministic": True}
    with load("alpha", "beta") as ensemble:
        expected = ensemble.generate(f"{NOTES}And", **options)
        ensemble.generate(NOTES, **OPTIONS)
        found = ensemble.generate(f"{NOTES}And", **options)
        assert [t.logprob for t in found.logprobs] == [t.logprob for t in expected.logprobs]
        ensemble.forget()
        copied = [member.work.ids_copied for member in ensemble._engine.members]
        ensemble.generate(NOTES, **options)
        ensemble.generate(NOTES, **OPTIONS)
        assert [member.work.ids_copied for member in ensemble._engine.members] == copied


def test_models_whose_weights_have_changed_are_asked_anew(load):
    with load("alpha", "beta") as ensemble:
        ensemble.generate(NOTES, **OPTIONS)
        with torch.no_grad():
            for member in ensemble._engine.members:
                member.model.get_input_embeddings().weight.mul_(1.5)
        ensemble.forget()
        found, expected = (turns(ensemble, chat=False, kept=kept)[0] for kept in (True, False))
    check_same(found, expected)


def test_to_forget_while_answers_are_written(load):
    """They are read again, and lose nothing."""
    prompts = [NOTES, f"{NOTES}The", "Once upon a time"]
    options = {**OPTIONS, "max_new_tokens": 60}
    with load("alpha", "beta") as ensemble:
        expected = ensemble.generate(prompts, **options)
        ensemble.forget()
        handles = [ensemble.submit(prompt, **options) for prompt in prompts]
        done = threading.Event()

        def forgets():
            while not done.is_set():
                ensemble.forget()

        thread = threading.Thread(target=forgets)
        thread.start()
        found = [handle.result() for handle in handles]
        done.set()
        thread.join()
    check_same(found, expected)
