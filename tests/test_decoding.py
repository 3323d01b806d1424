"""Decoding with several members: streams, ends, seeds, the other members' text, windows, failures."""

import functools
import itertools
import threading

import pytest
import torch
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from deepen_core import Ensemble, SamplingParams
from deepen_core.chat import template
from deepen_core.constraints import matcher
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.errors import ClosedError, ContextWindowError, MemberError

PROMPT = "The quick brown fox"


@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "seed": 5}, {"temperature": 0.8, "top_k": 30, "seed": 6}])
@pytest.mark.parametrize(
    "names", [("alpha", "beta"), ("beta", "alpha"), ("gamma", "wordpiece"), ("alpha", "beta", "gamma")]
)
def test_stream_equals_generate(load, names, options):
    with load(*names) as ensemble:
        whole = ensemble.generate(PROMPT, max_new_tokens=40, **options)
        chunks = list(ensemble.stream(PROMPT, max_new_tokens=40, **options))
    assert "".join(c.text for c in chunks) == whole.text == chunks[-1].generation.text
    assert list(itertools.chain(*(c.token_ids for c in chunks))) == whole.token_ids
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason
    assert whole.usage.completion_tokens == len(whole.token_ids)


@pytest.mark.parametrize("names", [("alpha", "beta"), ("beta", "alpha"), ("alpha", "gamma"), ("gamma", "wordpiece")])
def test_other_members_hold_canonical_ids_and_a_true_cache(load, folders, names):
    """After a generation with many rewinds: the ids of the whole text, and the logits of a fresh forward over them."""
    with load(*names) as ensemble:
        sequence = ensemble._engine.decoder.start(
            PROMPT, SamplingParams(max_new_tokens=60, temperature=1.0, seed=3, ignore_eos=True)
        )
        for _ in range(45):
            ensemble._engine.decoder.step([sequence])
            side, member = sequence.member_sequences[1], ensemble._engine.members[1]
            if sequence.others_behind:
                continue
            tokenizer = AutoTokenizer.from_pretrained(folders[names[1]])
            text = sequence._vocabulary.join(sequence.token_ids).decode("utf-8", "replace")
            expected = tokenizer(PROMPT + text, split_special_tokens=True)["input_ids"]
            assert side.ids == expected
            with torch.inference_mode():
                logits = member.next_logits([side])[0]
                fresh = member.model(torch.tensor([side.ids])).logits[0, -1]
            torch.testing.assert_close(logits, fresh, atol=1e-4, rtol=1e-4)
        assert side.tokens_run > 0


def test_several_prompts_equal_each_alone(pair):
    prompts = [PROMPT, "Once", "def mean(values):\n    return", "你好"]
    together = pair.generate(prompts, max_new_tokens=20)
    alone = [pair.generate(p, max_new_tokens=20) for p in prompts]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.text for a in together] == [a.text for a in alone]
    assert pair.generate([], max_new_tokens=3) == []


def test_seeds(pair):
    options = {"max_new_tokens": 25, "temperature": 1.0}
    state = torch.random.get_rng_state()
    first = pair.generate(PROMPT, seed=1, **options)
    assert first.text == pair.generate(PROMPT, seed=1, **options).text
    assert first.text == pair.generate(["Once", PROMPT], seed=1, **options)[1].text
    assert first.text != pair.generate(PROMPT, seed=2, **options).text
    assert pair.generate(PROMPT, **options).text != pair.generate(PROMPT, **options).text
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sampling_options_bite(pair):
    greedy = pair.generate(PROMPT, max_new_tokens=15)
    for option in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert pair.generate(PROMPT, max_new_tokens=15, temperature=1.0, seed=0, **option).token_ids == greedy.token_ids
    penalised = pair.generate(PROMPT, max_new_tokens=40, repetition_penalty=100.0, ignore_eos=True)
    assert len(set(penalised.token_ids)) == 40


def test_repetition_penalty_equals_transformers(folders):
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folders["beta"])
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(folders["beta"])
    options = {"do_sample": False, "max_new_tokens": 30, "repetition_penalty": 1.3, "pad_token_id": 0}
    expected = model.generate(ids, suppress_tokens=[2, 4], **options)
    with Ensemble.load([folders["beta"]], progress=False, device="cpu") as ensemble:
        found = ensemble.generate(PROMPT, max_new_tokens=30, repetition_penalty=1.3, ignore_eos=True)
    assert found.token_ids == expected[0, ids.shape[1] :].tolist()


def test_a_repetition_penalty_counts_at_the_scale_of_mains_logits(pair, monkeypatch):
    """It multiplies or divides scores by their sign, so fused ones are shifted to sum to what main's sum to."""
    seen, choose = [], EnsembleSequence.choose

    def spied(sequence, scores, own):
        seen.append((float(scores.logsumexp(-1)), float(own.logsumexp(-1))))
        return choose(sequence, scores, own)

    monkeypatch.setattr(EnsembleSequence, "choose", spied)
    pair.generate([PROMPT, "The dog"], max_new_tokens=5, repetition_penalty=1.3, ignore_eos=True)
    assert len(seen) == 10
    assert all(fused == pytest.approx(own, abs=1e-3) for fused, own in seen)


def test_a_penalty_leaves_the_scores_of_neighbours_as_they_are(pair, monkeypatch):
    """Bit for bit: rounding would decide between nearly equal tokens."""
    seen, choose = [], EnsembleSequence.choose

    def spied(sequence, scores, own):
        seen.append(scores.clone())
        return choose(sequence, scores, own)

    monkeypatch.setattr(EnsembleSequence, "choose", spied)
    decoder = pair._engine.decoder
    for other in (SamplingParams(), SamplingParams(repetition_penalty=1.3)):
        sequences = [decoder.start(PROMPT, SamplingParams()), decoder.start(PROMPT, other)]
        decoder.step(sequences)
        for sequence in sequences:
            sequence.release()
    first, _, again, penalised = seen
    assert torch.equal(first, again)
    assert not torch.equal(first, penalised)


def test_frequency_and_presence_penalties_count_the_answer(folders):
    """Against the definition: greedy choice of the logits, less what the tokens of the answer cost."""
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folders["beta"])
    model = AutoModelForCausalLM.from_pretrained(folders["beta"])
    ids, answer = tokenizer(PROMPT)["input_ids"], []
    for _ in range(25):
        with torch.no_grad():
            logits = model(torch.tensor([ids + answer])).logits[0, -1]
        logits[[2, 4]] = -torch.inf
        for token in set(answer):
            logits[token] -= 0.7 * answer.count(token) + 0.4
        answer.append(int(logits.argmax()))
    options = {"max_new_tokens": 25, "ignore_eos": True}
    with Ensemble.load([folders["beta"]], progress=False, device="cpu") as ensemble:
        found = ensemble.generate(PROMPT, frequency_penalty=0.7, presence_penalty=0.4, **options)
        plain = ensemble.generate(PROMPT, **options)
    assert found.token_ids == answer != plain.token_ids


def test_warming_up_runs_a_step(load):
    with load("alpha", "beta") as ensemble:
        ensemble.warm_up()
        assert all(member.work.forwards for member in ensemble._engine.members)


def test_warming_up_leaves_nothing_for_the_first_request(load, monkeypatch):
    """Neither to main's vocabulary as constraints need it, nor to find out what chat templates can do."""
    with load("alpha", "beta") as ensemble:
        assert ensemble.has_chat_template
        ensemble.warm_up()
        monkeypatch.setattr(matcher.Lexicon, "__init__", lambda *_, **__: pytest.fail("this was left to do"))
        monkeypatch.setattr(template.ChatTemplate._takes, "func", lambda _: pytest.fail("this was left to do"))
        ensemble.generate([{"role": "user", "content": "Hi."}], choices=["yes", "no"])


def test_padded_ids_are_never_chosen(folders, tmp_path):
    """A model whose embeddings are padded, and whose padding it finds most probable."""
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folders["beta"])
    model = AutoModelForCausalLM.from_pretrained(folders["beta"])
    size = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(size + 40)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        last = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        model.get_output_embeddings().weight[size:] = 50 * last
        assert int(model(ids).logits[0, -1].argmax()) >= size
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for options in ({}, {"temperature": 1.0, "seed": 1}):
        with Ensemble.load([tmp_path], progress=False, device="cpu") as ensemble:
            answer = ensemble.generate(PROMPT, max_new_tokens=20, ignore_eos=True, **options)
        assert max(answer.token_ids) < size
        assert answer.text


@functools.cache
def _free_answer(pair):
    return pair.generate(PROMPT, max_new_tokens=30, temperature=1.0, seed=9, ignore_eos=True)


@settings(max_examples=examples(25), deadline=None)
@given(data=st.data())
def test_stop_strings_cut_exactly(pair, data):
    """Whatever piece of the free answer is a stop string, the answer ends right before its first occurrence."""
    free = _free_answer(pair)
    start = data.draw(st.integers(0, len(free.text) - 1))
    stop = free.text[start : start + data.draw(st.integers(1, 8))]
    options = {"max_new_tokens": 30, "temperature": 1.0, "seed": 9, "ignore_eos": True, "stop": [stop, "never there"]}
    expected = free.text[: free.text.index(stop)]
    chunks = list(pair.stream(PROMPT, **options))
    assert "".join(c.text for c in chunks) == expected
    assert chunks[-1].finish_reason == "stop"
    assert pair.generate(PROMPT, **options).text == expected


def test_characters_that_take_several_tokens_come_whole(pair):
    """Main is made to speak emoji and CJK in single bytes; nobody sees half a character."""
    text = "né 你好 😀!"
    ids = [pair._engine.members[0].tokenizer.vocabulary.id_of(bytes([b])) for b in text.encode()]
    sequence = pair._engine.decoder.start(PROMPT, SamplingParams(max_new_tokens=100))
    chunks, lengths = [], []
    with torch.inference_mode():
        for token_id in ids:
            sequence.accept(token_id)
            chunk = sequence.take_chunk()
            chunks.append(chunk.text if chunk else "")
            lengths.append(len(sequence.member_sequences[1].ids))
    assert "".join(chunks) == text
    assert not any("\ufffd" in c for c in chunks)
    other = pair._engine.members[1].tokenizer
    assert sequence.member_sequences[1].ids[1:] == other.encode(PROMPT + text)


def test_end_of_text(pair, monkeypatch):
    """A stop token chosen ends the sequence, is no part of the text, and is not counted."""
    stop = sorted(pair._engine.members[0].tokenizer.vocabulary.stop_ids)[0]
    chosen = iter([40, 41, stop])
    monkeypatch.setattr("deepen_core.sampling.sampler.Sampler.choose", lambda *_: next(chosen))
    answer = pair.generate(PROMPT, max_new_tokens=10)
    assert (answer.finish_reason, answer.token_ids, answer.usage.completion_tokens) == ("stop", [40, 41], 2)


def test_length_and_ignore_eos(pair):
    answer = pair.generate(PROMPT, max_new_tokens=90, ignore_eos=True)
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 90


def test_dummy_space_at_the_very_start_is_no_text(load):
    with load("beta", "alpha") as ensemble:
        sequence = ensemble._engine.decoder.start("", SamplingParams(max_new_tokens=5))
        the = ensemble._engine.members[0].tokenizer.vocabulary.id_of(b" the")
        sequence.accept(the)
        sequence.accept(the)
        assert sequence.take_chunk().text == "the the"
        sequence = ensemble._engine.decoder.start("x", SamplingParams(max_new_tokens=5))
        sequence.accept(the)
        assert sequence.take_chunk().text == " the"


def test_windows(load, folders):
    with load("alpha", "beta") as ensemble:
        window = ensemble.context_window
        assert window == 256
        words = " dog" * 255
        with pytest.raises(ContextWindowError, match=r"has 256 tokens .* 'beta'|has \d+ tokens .* window is 256"):
            ensemble.generate(words, max_new_tokens=1)
        near = ensemble.generate(" dog" * 240, max_new_tokens=100, ignore_eos=True)
        assert near.finish_reason == "length"
        assert len(near.token_ids) < 100
        assert near.warnings
        assert near.usage.prompt_tokens + near.usage.completion_tokens <= 256
        assert not ensemble.generate(PROMPT, max_new_tokens=5).warnings


def test_timeout(pair):
    answer = pair.generate(PROMPT, max_new_tokens=200, timeout=1e-9)
    assert answer.finish_reason == "timeout"
    assert answer.text == ""


def test_two_threads_share_an_ensemble(pair):
    expected = {p: pair.generate(p, max_new_tokens=25).text for p in (PROMPT, "Once upon")}
    found = {}

    def work(prompt):
        found[prompt] = pair.generate(prompt, max_new_tokens=25).text

    threads = [threading.Thread(target=work, args=(p,)) for p in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_non_finite_logits_name_the_member(load):
    with load("alpha", "beta") as ensemble:
        ensemble._engine.members[1].model.model.norm.weight.data[0] = float("nan")
        with pytest.raises(MemberError, match=r"Member 'beta' returned logits whose largest is nan"):
            ensemble.generate(PROMPT, max_new_tokens=2)


def test_a_member_of_weight_zero_is_not_run(load):
    with load("alpha", "beta", weights=[1, 0]) as ensemble:
        answer = ensemble.generate(PROMPT, max_new_tokens=5)
        assert [w.name for w in answer.member_work] == ["alpha"]
    with load("alpha", "beta", weights=[0, 1]) as ensemble:
        assert [w.name for w in ensemble.generate(PROMPT, max_new_tokens=5).member_work] == ["alpha", "beta"]


def test_close(load):
    ensemble = load("alpha", "beta")
    stream = ensemble.stream(PROMPT, max_new_tokens=200, ignore_eos=True)
    next(stream)
    ensemble.close()
    ensemble.close()
    with pytest.raises(ClosedError, match="load it again"):
        list(stream)
    calls = [lambda: ensemble.generate("a"), lambda: ensemble.score("a", "b"), lambda: ensemble.tokenize("a")]
    facts = ("info", "context_window", "has_chat_template", "main_name")
    for call in (*calls, *(functools.partial(getattr, ensemble, name) for name in facts)):
        with pytest.raises(ClosedError):
            call()


def test_info(pair):
    info = pair.info
    assert [m.name for m in info.members] == ["alpha", "beta"]
    assert [m.architecture for m in info.members] == ["GPT2LMHeadModel", "LlamaForCausalLM"]
    assert info.anchors > 100
    assert (info.main, info.fusion, info.context_window) == ("alpha", "deepen", 256)
    assert info.bytes_held > 0
    assert info.members[0].stop_tokens == ["<|eos|>", "<|end|>"]
    anchors = set(pair._engine.fusion._anchors.tokens)
    ids, vocabulary = (getattr(pair._engine.members[1].tokenizer, name) for name in ("sample_ids", "vocabulary"))
    share = sum(vocabulary.token_bytes(i) not in anchors for i in ids) / len(ids)
    assert 0 < share < 1
    assert info.limits[1].startswith(f"{share:.0%} of the tokens of 'beta'")
    assert "always generates tokens of 'alpha'" in info.limits[2]
    assert all(m.self_mass is None and m.temperature is None and m.weight == 0.5 for m in info.members)
