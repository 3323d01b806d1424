"""`deterministic=True`: an answer is the same to the last bit, whatever else is decoded at the time."""

import functools

import pytest
import torch
from amounts import examples
from architectures import build
from hypothesis import given, settings
from hypothesis import strategies as st
from ids_parts import IdsSequence, made_up, member_of
from scheduler_parts import PROMPTS, hook
from seq2seq_parts import TEXTS, config
from test_scheduler_batch import LONG, ask, holds_nothing, run_out

from deepen_core import Ensemble
from deepen_core.engine.scheduler import Scheduler

OPTIONS = {"max_new_tokens": 6, "ignore_eos": True, "logprobs": 2, "deterministic": True}
EVERY = (*PROMPTS, LONG, LONG + "The fox")  # two with a beginning that is worth copying


@pytest.fixture(scope="module")
def half(load):
    """In bfloat16, where the shape of a forward decides on the last bits, and some of these on a token."""
    with load("alpha", "beta", dtype="bfloat16") as ensemble:
        yield ensemble


def bits(generation):
    """All that was chosen, with the exact log-probabilities of the ensemble and the members."""
    return generation.token_ids, repr(generation.logprobs)


@functools.cache
def alone(ensemble, prompt, budget):
    batch = Scheduler(ensemble._engine.decoder, 1, budget)
    request = ask(ensemble, batch, prompt, **OPTIONS)
    run_out(batch)
    return bits(request.mail.answer())


actions = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(EVERY), st.booleans()),
    st.tuples(st.just("step"), st.integers(1, 4), st.just(True)),
)


@settings(max_examples=examples(20), deadline=None)
@given(plan=st.lists(actions, min_size=2, max_size=14), size=st.integers(1, 6), budget=st.sampled_from([5, 16, 256]))
def test_any_interleaving_gives_the_same_bits(half, plan, size, budget):
    batch = Scheduler(half._engine.decoder, size, budget)
    asked = []
    for action, value, own in plan:
        if action == "ask":
            request = ask(half, batch, value, **{**OPTIONS, "deterministic": own})
            asked += [(value, request)] if own else []
        else:
            for _ in range(value):
                batch.step()
    run_out(batch)
    for prompt, request in asked:
        assert bits(request.mail.answer()) == alone(half, prompt, budget)
        assert holds_nothing(request)


def test_without_it_the_bits_depend_on_the_batch(half):
    """Or else the test above could not fail."""
    shared = {**OPTIONS, "deterministic": False}
    together = half.generate(list(EVERY), **shared)
    assert [bits(one) for one in together] != [bits(half.generate(prompt, **shared)) for prompt in EVERY]
    own = half.generate(list(EVERY), **OPTIONS)
    assert [bits(one) for one in own] == [bits(half.generate(prompt, **OPTIONS)) for prompt in EVERY]


def test_sampled_answers_too(half):
    options = {**OPTIONS, "temperature": 1.0, "seed": 7, "max_new_tokens": 12}
    together = half.generate(list(EVERY), **options)
    assert [bits(one) for one in together] == [bits(half.generate(prompt, **options)) for prompt in EVERY]


@pytest.mark.parametrize("family", ["t5", "bart", "marian"])
def test_encoder_decoder_members_too(seq2seq_folders, folders, family):
    models = [config(seq2seq_folders, family), folders["alpha"]]
    options = {**OPTIONS, "max_new_tokens": 10}
    with Ensemble.load(models, dtype="bfloat16", device="cpu", progress=False) as ensemble:
        alone = [bits(ensemble.generate(text, **options)) for text in TEXTS[:6]]
        texts = [TEXTS[0], *TEXTS[:6]]  # one of them twice, so that it could be copied
        together = [bits(one) for one in ensemble.generate(texts, **options)]
        mixed = [ensemble.submit(text, **{**options, "deterministic": n % 2 == 0}) for n, text in enumerate(texts)]
        some = [bits(handle.result()) for handle in mixed]
    assert together == [alone[0], *alone]
    assert some[::2] == together[::2]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "longrope", "bloom", "mamba", "rwkv", "xlnet"])
def test_members_of_all_kinds(name):
    """Batched, with windows, with positions that depend on the length, one at a time, with a state, whole."""
    member = member_of(build(name, dtype=torch.bfloat16))

    def states(neighbours):
        found, sequence = [], IdsSequence(made_up(20, 3))
        sequence.shares = False
        while member.prefill(sequence, 8):
            pass
        for step in range(8):
            if neighbours:
                member.next_logits(neighbours)
            found.append(member.next_logits([sequence])[0].clone())
            sequence.rewrite(step % 3, made_up(1 + step % 3, step))
            for other in neighbours:
                other.rewrite(0, [5])
        sequence.release()
        return torch.stack(found)

    alone = states([])
    assert torch.equal(states([IdsSequence(made_up(n, 3)) for n in (20, 9, 31)]), alone)


def test_others_are_still_decoded_together(load):
    with load("alpha") as ensemble:
        member = hook(ensemble)
        batch = Scheduler(ensemble._engine.decoder, 8)
        for prompt in PROMPTS[:4]:
            ask(ensemble, batch, prompt, deterministic=prompt == PROMPTS[0])
        run_out(batch)
    assert max(member.forwards) == 3
    assert member.forwards.count(1) >= 6


def test_nothing_is_copied_from_another_request(load):
    with load("alpha") as ensemble:
        (member,) = ensemble._engine.members
        for own, copied in ((False, True), (True, False)):
            before = member.work.ids_copied
            ensemble.generate([LONG, LONG], **{**OPTIONS, "deterministic": own})
            assert (member.work.ids_copied > before) is copied
