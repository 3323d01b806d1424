"""A prompt that weighs the members is read once: as the beginning of its answer, if it is a member's own prompt."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from deepen_core import Ensemble, SamplingParams
from deepen_core.engine import member_runner
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.prompt_likelihood import prompt_likelihood, prompt_text
from deepen_core.errors import CompatibilityWarning, MemberError
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.transformers.causal import CausalMember

LONG = "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not. " * 3
PROMPT = "The quick brown fox jumps over the lazy dog. The dog"
CHAT = [{"role": "user", "content": PROMPT}]
OPTIONS = {"max_new_tokens": 6, "ignore_eos": True, "logprobs": 0}


@pytest.fixture
def counted(monkeypatch):
    """What members are asked for the likelihood of: texts apart from any sequence, and prompts that are theirs."""
    apart, ahead = [], []
    reads, again, runs = CausalMember.token_logprobs, CausalMember.prompt_logprobs, CausalMember.read_ahead

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
    monkeypatch.setattr(CausalMember, "prompt_logprobs", again_logged)
    monkeypatch.setattr(CausalMember, "read_ahead", ahead_logged)
    return apart, ahead


@pytest.fixture
def apart_only(monkeypatch):
    """Makes members read all prompts apart from their sequences, from now on."""
    return lambda: monkeypatch.setattr(CausalMember, "read_ahead", lambda *_: None)


def logprobs(answer):
    return [token.logprob for token in answer.logprobs]


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
    monkeypatch.setattr(f"{prompt_likelihood.__module__}._STEP", 10)
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
    monkeypatch.setattr(CausalMember, "prompt_logprobs", lambda _, ids, start: read.append(len(ids)) or [-1.0])
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
    assert prompt_text("\u20ac" * 3000) == "\u20ac" * 333  # 8,000 of 9,000 bytes are left out
    assert prompt_text("\u20ac" * 334) == "\u20ac" * 167  # 500 of 1,002 bytes
    assert prompt_text("\U0001f9d1" * 250) == "\U0001f9d1" * 250
    assert prompt_text("ab" + "\U0001f9d1" * 250) == "\U0001f9d1" * 125  # cut within the 125th


@given(st.text(), st.integers(0, 3000))
def test_what_comes_first_is_left_out_in_steps_of_500_bytes(text, size):
    prompt = text + "x" * size
    left = prompt.encode()
    while len(left) > 1000:
        left = left[500:]
    assert prompt_text(prompt) == left.decode(errors="ignore")


def test_prompts_after_the_same_examples_begin_alike():
    """So that a member that has read one of them reads the end of the next one."""
    examples = "".join(f"{number} " for number in range(500))
    found = [prompt_text(examples + question) for question in ("Why?", "And what is it for?")]
    assert found[0].removesuffix("Why?") == found[1].removesuffix("And what is it for?")


def test_what_prompts_share_takes_no_turn_of_its_own(load):
    """Of a batch that begins alike, as many are admitted at once as without weights by the prompt."""
    with load("alpha", "beta", weights="perplexity") as ensemble:
        decoder = ensemble._engine.decoder
        sequences = [decoder.start(f"{LONG}{number}", SamplingParams()) for number in range(3)]
        asked = max(len(member.tokenizer.encode(LONG)) for member in ensemble._engine.members)
        first, *others = [decoder.prefill(sequence, 1000) for sequence in sequences]
        assert first >= asked
        assert max(others) < asked / 4
        for sequence in sequences:
            sequence.release()
