"""A prompt that weighs the members is read once: as the beginning of its answer."""

import itertools
from functools import cache

import pytest
import tiny
import torch
from architectures import build
from hypothesis import given, settings
from hypothesis import strategies as st
from ids_parts import IdsSequence, check, check_read_ahead, made_up, member_of
from tokenizers import processors

from deepen_core import Ensemble, SamplingParams
from deepen_core.engine import member_runner
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.prompt_likelihood import prompt_likelihood, prompt_text
from deepen_core.errors import CompatibilityWarning, MemberError
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence
from deepen_core.members.transformers.causal import CausalMember
from deepen_core.members.transformers.given_tokens import logprobs_in_piece, pieces, places_kept
from deepen_core.members.transformers.ragged import RaggedForward

LONG = "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not. " * 3
PROMPT = "The quick brown fox jumps over the lazy dog. The dog"
CHAT = [{"role": "user", "content": PROMPT}]
OPTIONS = {"max_new_tokens": 6, "ignore_eos": True, "logprobs": 0}


@pytest.fixture
def counted(monkeypatch):
    """What members are asked for the likelihood of: texts apart from any sequence, and prompts that are theirs."""
    apart, ahead = [], []
    reads, again, runs = CausalMember.token_logprobs, CausalMember.read_text, CausalMember.read_ahead

    def apart_logged(member, ids, start, source=None):
        apart.append(member.name)
        return reads(member, ids, start, source)

    def again_logged(member, ids, start):
        apart.append(member.name)
        return again(member, ids, start)

    def ahead_logged(member, sequence, start):
        found = runs(member, sequence, start)
        if found is not None:
            ahead.append(member.name)
        return found

    monkeypatch.setattr(CausalMember, "token_logprobs", apart_logged)
    monkeypatch.setattr(CausalMember, "read_text", again_logged)
    monkeypatch.setattr(CausalMember, "read_ahead", ahead_logged)
    return apart, ahead


@pytest.fixture
def apart_only(monkeypatch):
    """Makes members read all prompts apart from their sequences, from now on."""
    return lambda: monkeypatch.setattr(CausalMember, "read_ahead", lambda *_: None)


def logprobs(answer):
    return [token.logprob for token in answer.logprobs]


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


@pytest.mark.parametrize("start", range(1, 41))
def test_each_token_is_looked_up_in_one_piece(start):
    """Whatever is known of a token is its own."""
    ids = list(range(40))
    logits = torch.randn(40, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for piece in pieces(0, len(ids), 2**22):
        kept = places_kept(piece, start)
        assert 1 <= kept <= len(piece) == 16 or piece == range(8)
        found += logprobs_in_piece(logits[piece.stop - kept : piece.stop], ids, piece, start)
    known = torch.log_softmax(logits.float(), -1)
    assert found == [float(known[place - 1, place]) for place in range(start, 40)]


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
@pytest.mark.parametrize("name", ["llama", "gemma3", "dynamic", "mamba"])
@settings(max_examples=20, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(0, 60), st.integers(2, 30), st.integers(1, 3)), min_size=2, max_size=5))
def test_texts_are_read_one_after_the_other_as_each_alone(name, shapes):
    """Whatever a text shares with the last one."""
    model = _built(name)
    member = member_of(model, 512)
    for shared, own, start in shapes:
        ids = made_up(shared, 5) + made_up(own, own)
        found = member.read_text(ids, start)
        assert found == pytest.approx(member.token_logprobs(ids, start), abs=3e-5)
        assert len(found) == len(ids) - start


_built = cache(build)


@torch.inference_mode()
def test_the_text_that_is_kept_is_copied_and_forgotten(monkeypatch):
    model = build("llama")
    member = member_of(model)
    common = made_up(50, 5)
    member.read_text([*common, 7, 8], 1)
    member.read_text([*common, 9], 1)
    assert member.work.ids_copied == 49
    member.forget()
    member.read_text([*common, 9], 1)
    assert member.work.ids_copied == 49
    with monkeypatch.context() as patch:  # it has written to the first layer
        patch.setattr(model.model.layers[1].mlp, "forward", lambda states: states + states.new_zeros(3))
        with pytest.raises(RuntimeError):
            member.read_text([*common, 4], 1)
    assert member.read_text([*common, 9], 1) == pytest.approx(member.token_logprobs([*common, 9], 1), abs=1e-5)
    assert member.work.ids_copied == 49


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


@torch.inference_mode()
@pytest.mark.parametrize("name", ["alpha", "beta", "no_bos"])
def test_the_likelihood_is_that_of_the_text(load, name):
    with load(name) as ensemble:
        (member,) = ensemble._engine.members
        for text in (PROMPT, "Tom", "x", "  two\n\nlines ", "na\u00efve \U0001f9d1\u200d\U0001f33e"):
            sequence = MemberSequence(member.tokenizer.reader.read_text(text), member.tokenizer, is_main=True)
            expected = prompt_likelihood(member, text)
            assert prompt_likelihood(member, text, sequence) == pytest.approx(expected, abs=1e-5)
            sequence.release()


@pytest.mark.parametrize("puts_bos", [True, False])
def test_bos_is_before_the_text_where_the_tokenizer_puts_it(tmp_path, counted, puts_bos):
    """Qwen2.5 names a BOS and was trained without one: it finds texts less likely after it."""
    tokenizer = tiny.byte_level()
    if not puts_bos:
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tiny.save_gpt2(tmp_path, tokenizer)
    with Ensemble.load([tmp_path], weights="perplexity", progress=False, device="cpu") as ensemble:
        (member,) = ensemble._engine.members
        assert member.tokenizer.vocabulary.bos_id is not None
        ids = tokenizer(PROMPT)["input_ids"]
        start = 2 if puts_bos else 1
        with torch.inference_mode():
            logprobs = torch.log_softmax(member.model(torch.tensor([ids])).logits[0], -1)
        nats = sum(float(logprobs[place - 1, ids[place]]) for place in range(start, len(ids)))
        size = len(tokenizer.decode(ids[start:]).encode())
        assert prompt_likelihood(member, PROMPT) == pytest.approx((nats / size, size), abs=1e-5)
        counted[0].clear()
        ensemble.generate(PROMPT, **OPTIONS)
        assert counted == ([], [tmp_path.name])


@pytest.mark.parametrize("step_timeout", [None, 60])
def test_prompts_in_plain_text_are_run_once(load, counted, apart_only, step_timeout):
    apart, ahead = counted
    with load("alpha", "beta", weights="perplexity", step_timeout=step_timeout) as ensemble:
        found = ensemble.generate([PROMPT, "Another text, with a few words"], **OPTIONS)
        assert (apart, sorted(ahead)) == ([], ["alpha", "alpha", "beta", "beta"])
    apart_only()
    with load("alpha", "beta", weights="perplexity", step_timeout=step_timeout) as ensemble:
        expected = ensemble.generate([PROMPT, "Another text, with a few words"], **OPTIONS)
    assert sorted(apart) == ["alpha", "alpha", "beta", "beta"]
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert logprobs(one) == pytest.approx(logprobs(other), abs=1e-4)


@pytest.mark.parametrize(("prompt", "most"), [(CHAT, 1000), (PROMPT, 20)], ids=["conversation", "long"])
def test_texts_that_are_not_a_members_prompt_are_read_apart(load, counted, monkeypatch, prompt, most):
    """The template is no part of the text, and of a long prompt the end is read."""
    monkeypatch.setattr(f"{prompt_likelihood.__module__}._MOST", most)
    with load("alpha", "beta", weights="perplexity") as ensemble:
        ensemble.generate(prompt, **OPTIONS)
    assert counted == (["alpha", "beta"], [])


def test_a_member_that_cannot_read_ahead(tmp_path, folders, counted):
    """A state is not run together with others, and its prompts are read apart."""
    tiny.save_mamba(tmp_path, tiny.byte_level())
    with pytest.warns(CompatibilityWarning):
        ensemble = Ensemble.load([folders["beta"], tmp_path], weights="perplexity", progress=False, device="cpu")
    with ensemble:
        ensemble.generate(PROMPT, **OPTIONS)
    assert counted == ([tmp_path.name], ["beta"])


def test_several_answers_to_one_prompt_read_it_once(load, counted):
    with load("alpha", "beta", weights="perplexity") as ensemble:
        sampled = ensemble.generate([PROMPT] * 5, **OPTIONS, temperature=1.0)
        assert (counted[0], sorted(counted[1])) == ([], ["alpha", "beta"])
        assert len({answer.text for answer in sampled}) > 1
        again = ensemble.generate(PROMPT, **OPTIONS)
    with load("alpha", "beta", weights="perplexity") as ensemble:
        assert logprobs(ensemble.generate(PROMPT, **OPTIONS)) == pytest.approx(logprobs(again), abs=1e-4)


def test_the_last_prompts_are_kept(load, counted, monkeypatch):
    monkeypatch.setattr(member_runner, "_PROMPTS_KEPT", 2)
    with load("alpha", weights="perplexity") as ensemble:
        for number, reads in ((1, 1), (2, 2), (1, 2), (3, 3), (2, 3), (1, 4)):  # 1 leaves for 3
            ensemble.generate(f"{PROMPT} {number}", max_new_tokens=1)
            assert len(counted[1]) == reads


def test_a_deterministic_answer_is_weighed_by_its_own_reading(load, counted):
    """What is read with others in the cache may differ in its last bits."""
    with load("alpha", "beta", weights="perplexity") as ensemble:
        ensemble.generate(PROMPT, **OPTIONS)
        assert counted[0] == []
        for _ in range(2):
            ensemble.generate(PROMPT, **OPTIONS, deterministic=True)
        assert sorted(counted[0]) == ["alpha", "beta"]


def test_known_prompts_are_decoded_together(load, monkeypatch):
    """As with any policy: nothing has to be run before the prompt of the second answer and those after it."""
    widths, step = [], Decoder.step

    def logged(decoder, sequences):
        widths.append(len(sequences))
        step(decoder, sequences)

    with load("alpha", "beta", weights="perplexity", max_batch_size=24) as ensemble:
        ensemble.generate(LONG, max_new_tokens=1)
        monkeypatch.setattr(Decoder, "step", logged)
        ensemble.generate([LONG] * 24, **OPTIONS)
    assert widths == [24] * OPTIONS["max_new_tokens"]


def test_a_prompt_of_which_every_character_is_many_tokens(load, monkeypatch):
    monkeypatch.setattr(f"{prompt_likelihood.__module__}._MOST_IDS", 12)
    read = []
    monkeypatch.setattr(CausalMember, "read_text", lambda _, ids, start: read.append(len(ids)) or [-1.0])
    with load("alpha", "beta", weights="perplexity") as ensemble:
        ensemble.generate("\u20ac" * 40, **OPTIONS)
    assert read == [12, 12]


def test_a_prompt_that_could_not_be_read_is_read_again(load, monkeypatch):
    calls = []

    def fails_once(member, sequence, start):
        calls.append(start)
        if len(calls) == 1:
            raise RuntimeError("not yet")

    with load("alpha", "beta", weights="perplexity") as ensemble:
        monkeypatch.setattr(CausalMember, "read_ahead", fails_once)
        with pytest.raises(MemberError, match="not yet"):
            ensemble.generate(PROMPT, **OPTIONS)
        assert ensemble.generate(PROMPT, **OPTIONS).token_ids
    assert len(calls) == 3  # the first member fails, and then both are asked


def test_a_member_without_weight_keeps_nothing_of_the_prompt(load):
    """Its slot would be run along with those of other answers."""
    with load("alpha", "beta", weights="perplexity:1,1e-30") as ensemble:
        decoder, members = ensemble._engine.decoder, ensemble._engine.members
        sequence = decoder.start(PROMPT, SamplingParams(max_new_tokens=4, ignore_eos=True))
        decoder.prefill(sequence, 100)
        assert sequence.needed == [True, False]
        with torch.inference_mode():
            decoder.step([sequence])
        assert [len(member._ways.short.cache.slots) for member in members] == [1, 0]
        assert [part.cached > 0 for part in sequence.member_sequences] == [True, False]
        sequence.release()


def test_the_end_of_a_prompt_is_cut_between_characters():
    """A character of several bytes that does not fit whole is left out."""
    assert prompt_text("x" * 3000) == "x" * 1000
    assert prompt_text("\u20ac" * 3000) == "\u20ac" * 333
    assert prompt_text("\U0001f9d1" * 250) == "\U0001f9d1" * 250
    assert prompt_text("\U0001f9d1" * 250 + "ab") == "\U0001f9d1" * 249 + "ab"


@torch.inference_mode()
def test_a_long_text_before_changes_nothing():
    """Dynamic positions remember the longest text that they saw."""
    member = member_of(build("dynamic"), 512)
    ids = made_up(120, 5)
    expected = member.token_logprobs(ids, 1)
    member.next_logits([IdsSequence(made_up(200, 6))])
    assert member.token_logprobs(ids, 1) == expected
