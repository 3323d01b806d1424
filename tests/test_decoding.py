"""Decoding with several members: streams, ends, seeds, the other members' text, windows, failures."""

import functools
import itertools
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from deepen_core import Ensemble, SamplingParams
from deepen_core.errors import ClosedError, ContextWindowError, MemberError, ModelFilesError, PromptError
from deepen_core.members import MemberRow
from deepen_core.scoring import continuation_ids
from deepen_core.stopping import StopMatcher
from deepen_core.text import Utf8Stream

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
        row = ensemble._decoder.start(
            PROMPT, SamplingParams(max_new_tokens=60, temperature=1.0, seed=3, ignore_eos=True)
        )
        for _ in range(45):
            ensemble._decoder.step([row])
            side, member = row.sides[1], ensemble._members[1]
            if row.others_behind:
                continue
            tokenizer = AutoTokenizer.from_pretrained(folders[names[1]])
            text = row._vocabulary.join(row.token_ids).decode("utf-8", "replace")
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


@functools.cache
def _free_answer(pair):
    return pair.generate(PROMPT, max_new_tokens=30, temperature=1.0, seed=9, ignore_eos=True)


@settings(max_examples=25, deadline=None)
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


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_matcher_does_not_depend_on_the_pieces(text, stops, cuts):
    matcher, shown = StopMatcher(stops), ""
    places = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    for a, b in itertools.pairwise(places):
        shown += matcher.feed(text[a:b])
        ends = [shown.find(s) for s in stops]
        assert max(ends, default=-1) == -1
    shown += matcher.finish()
    # The first stop string to be complete ends the text, at its own beginning.
    complete = min((text.find(s) + len(s) for s in stops if s in text), default=None)
    if complete is None:
        assert shown == text
    else:
        assert matcher.matched is not None
        assert text.startswith(shown + matcher.matched)
        assert len(shown) <= min(text.find(s) for s in stops if s in text[:complete])


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=10))
def test_utf8_stream_shows_what_is_certain(data, cuts):
    stream, shown = Utf8Stream(), ""
    for a, b in itertools.pairwise(sorted({0, len(data), *(c for c in cuts if c < len(data))})):
        shown += stream.feed(data[a:b])
        assert (data[:b].decode("utf-8", "replace")).startswith(shown)
    assert shown + stream.finish() == data.decode("utf-8", "replace")
    if not data:
        assert not stream.waiting


def test_characters_that_take_several_tokens_come_whole(pair):
    """Main is made to speak emoji and CJK in single bytes; nobody sees half a character."""
    text = "né 你好 😀!"
    ids = [pair._members[0].tokenizer.vocabulary.id_of(bytes([b])) for b in text.encode()]
    row = pair._decoder.start(PROMPT, SamplingParams(max_new_tokens=100))
    chunks, lengths = [], []
    with torch.inference_mode():
        for token_id in ids:
            row.accept(token_id)
            chunk = row.take_chunk()
            chunks.append(chunk.text if chunk else "")
            lengths.append(len(row.sides[1].ids))
    assert "".join(chunks) == text
    assert not any("\ufffd" in c for c in chunks)
    other = pair._members[1].tokenizer
    assert row.sides[1].ids[1:] == other.encode(PROMPT + text)


def test_end_of_text(pair, monkeypatch):
    """A stop token chosen ends the row, is no part of the text, and is not counted."""
    stop = sorted(pair._members[0].tokenizer.vocabulary.stop_ids)[0]
    chosen = iter([40, 41, stop])
    monkeypatch.setattr("deepen_core.sampling.Sampler.choose", lambda *_: next(chosen))
    answer = pair.generate(PROMPT, max_new_tokens=10)
    assert (answer.finish_reason, answer.token_ids, answer.usage.completion_tokens) == ("stop", [40, 41], 2)


def test_length_and_ignore_eos(pair):
    answer = pair.generate(PROMPT, max_new_tokens=90, ignore_eos=True)
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 90


def test_dummy_space_at_the_very_start_is_no_text(load):
    with load("beta", "alpha") as ensemble:
        row = ensemble._decoder.start("", SamplingParams(max_new_tokens=5))
        the = ensemble._members[0].tokenizer.vocabulary.id_of(b" the")
        row.accept(the)
        row.accept(the)
        assert row.take_chunk().text == "the the"
        row = ensemble._decoder.start("x", SamplingParams(max_new_tokens=5))
        row.accept(the)
        assert row.take_chunk().text == " the"


def test_logprobs(pair):
    answer = pair.generate(PROMPT, max_new_tokens=8, logprobs=3, ignore_eos=True)
    assert [t.token_id for t in answer.logprobs] == answer.token_ids
    for token in answer.logprobs:
        assert token.top[0][0] == token.token_id
        assert token.logprob == pytest.approx(token.top[0][2])
        assert [p for _, _, p in token.top] == sorted((p for _, _, p in token.top), reverse=True)
        assert len(token.top) == 3
    assert pair.generate(PROMPT, max_new_tokens=3).logprobs is None
    scored = pair.score(PROMPT, answer.text)
    if scored.token_ids == answer.token_ids:
        assert scored.logprobs == pytest.approx([t.logprob for t in answer.logprobs], abs=1e-4)


@torch.inference_mode()
def test_logprobs_of_each_member(pair, folders):
    """What each member alone thought, against a forward of `transformers` over the whole text up to there."""
    from transformers import AutoModelForCausalLM

    answer = pair.generate(PROMPT, max_new_tokens=30, logprobs=4, ignore_eos=True, temperature=0.9, seed=8)
    models = {n: AutoModelForCausalLM.from_pretrained(folders[n]) for n in ("alpha", "beta")}
    vocabularies = {m.name: m.tokenizer.vocabulary for m in pair._members}
    abstained = lacking = 0
    for place, chosen in enumerate(answer.logprobs):
        said = vocabularies["alpha"].join(answer.token_ids[:place])
        assert [m.name for m in chosen.members] == ["alpha", "beta"]
        for member in chosen.members:
            tokenizer = AutoTokenizer.from_pretrained(folders[member.name])
            ids = tokenizer(PROMPT)["input_ids"] + answer.token_ids[:place]
            if member.name == "beta":
                stream = Utf8Stream()
                text = stream.feed(said)
                if stream.waiting:  # main is in the middle of a character
                    assert (member.logprob, member.top) == (None, ())
                    abstained += 1
                    continue
                ids = tokenizer(PROMPT + text, split_special_tokens=True)["input_ids"]
            own = torch.log_softmax(models[member.name](torch.tensor([ids])).logits[0, -1], -1)
            assert member.token_id == vocabularies[member.name].id_of(chosen.token)
            lacking += member.token_id is None
            if member.token_id is None:
                assert member.logprob is None
            else:
                assert member.logprob == pytest.approx(float(own[member.token_id]), abs=1e-4)
            best = own.topk(4)
            assert [p for _, _, p in member.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert [i for i, _, _ in member.top] == best.indices.tolist()
    assert abstained
    assert lacking


def test_logprobs_cost_nothing_unless_asked_for(pair, monkeypatch):
    monkeypatch.setattr("deepen_core.logprobs.TokenReporter.report", lambda *_: pytest.fail("reported"))
    assert pair.generate(PROMPT, max_new_tokens=3).logprobs is None


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
        ensemble._members[1].model.model.norm.weight.data[0] = float("nan")
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
    assert info.bytes_held == sum(m.space_bytes for m in info.members) > 0
    assert info.members[0].stop_tokens == ["<|eos|>", "<|end|>"]
    assert all(0 < m.self_mass <= 1 and m.temperature > 0 and m.weight == 0.5 for m in info.members)


def test_score(load, pair, folders):
    """Fused log-probabilities of one member are its own; members' own are those of one forward."""
    from transformers import AutoModelForCausalLM

    text = " jumps over the dog"
    with load("alpha", "beta", weights=[1, 0]) as ensemble:
        alone = ensemble.score(PROMPT, text)
    assert [m.name for m in alone.members] == ["alpha"]
    assert alone.bytes == len(text)
    both = pair.score(PROMPT, text)
    for name, logprobs, ids in (
        ("alpha", alone.logprobs, alone.token_ids),
        ("alpha", both.members[0].logprobs, both.members[0].token_ids),
        ("beta", both.members[1].logprobs, both.members[1].token_ids),
    ):
        tokenizer = AutoTokenizer.from_pretrained(folders[name])
        whole = tokenizer(PROMPT + text)["input_ids"]
        assert whole[-len(ids) :] == ids
        logits = AutoModelForCausalLM.from_pretrained(folders[name])(torch.tensor([whole])).logits[0]
        expected = torch.log_softmax(logits, -1)[range(len(whole) - len(ids) - 1, len(whole) - 1), ids]
        assert logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_score_ends_at_the_window(pair):
    with pytest.raises(ContextWindowError, match=r"Prompt and continuation have \d+ tokens for member"):
        pair.score(PROMPT, " dog" * 260)
    assert len(pair.score(PROMPT, " dog" * 200).logprobs) == 200


@pytest.mark.parametrize(
    "texts", [(None, "x"), ("x", 5), ([{"role": "user", "content": "x"}], "y"), ("x", ""), ("x", "\ud800")]
)
def test_score_takes_two_texts(pair, texts):
    with pytest.raises(PromptError, match=r"score takes two texts|nothing to score|lone surrogate"):
        pair.score(*texts)


@given(
    prompt=st.sampled_from(["The do", "x", "", "  ", "你", "x\n", "a.", "if:\n"]),
    text=st.text("thedog \n你", min_size=1, max_size=12),
)
@settings(max_examples=40, deadline=None)
def test_scored_ids_spell_the_continuation(pair, prompt, text):
    ids = continuation_ids(pair._members[0].tokenizer, prompt, text)
    assert pair._members[0].tokenizer.vocabulary.join(ids) == text.encode()


def test_models_that_ignore_the_cache_run_without_one(tmp_path, folders):
    """OpenAI GPT takes a cache among its options and does not look at it."""
    import tiny
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    tokenizer = tiny.byte_level()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = OpenAIGPTConfig(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
        model = OpenAIGPTLMHeadModel(config)
    model.config.update({"eos_token_id": 1, "bos_token_id": 0})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    expected = model.eval().generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=1, use_cache=False)
    with Ensemble.load([tmp_path], progress=False, device="cpu") as ensemble:
        found = ensemble.generate(PROMPT, max_new_tokens=12)
    assert found.token_ids == [t for t in expected[0, ids.shape[1] :].tolist() if t not in (1, 3)]


def test_a_tokenizer_larger_than_the_matrix(tmp_path, folders):
    import tiny

    tokenizer = tiny.byte_level()
    tiny.save_gpt2(tmp_path, tokenizer)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelFilesError, match=r"has 1 tokens with ids up to 420, but the model has 420 embeddings"):
        Ensemble.load([tmp_path, folders["beta"]], progress=False, device="cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_and_default_dtypes(folders, dtype):
    """Members of any precision, in a process whose default is another one."""
    torch.set_default_dtype(torch.float64)
    try:
        with Ensemble.load([folders["alpha"], folders["beta"]], dtype=dtype, progress=False, device="cpu") as ensemble:
            assert len(ensemble.generate(PROMPT, max_new_tokens=5, ignore_eos=True).token_ids) == 5
    finally:
        torch.set_default_dtype(torch.float32)


def test_state_space_members_run_without_a_cache(tmp_path, folders):
    """A state that cannot be shortened: slow but right."""
    import tiny
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = tiny.byte_level()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MambaConfig(
            vocab_size=len(tokenizer), hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=1, bos_token_id=0
        )
        MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with Ensemble.load([folders["beta"], tmp_path], progress=False, device="cpu") as ensemble:
        row = ensemble._decoder.start(PROMPT, SamplingParams(max_new_tokens=20, ignore_eos=True))
        for _ in range(10):
            ensemble._decoder.step([row])
        with torch.inference_mode():
            found = ensemble._members[1].next_logits([row.sides[1]])[0]
            fresh = ensemble._members[1].model(torch.tensor([row.sides[1].ids])).logits[0, -1]
        torch.testing.assert_close(found, fresh)
        assert row.sides[1].tokens_run > 0


def test_prefill_in_pieces_gives_the_same_logits(pair):
    """What is run ahead, in pieces of any size, changes nothing, and nothing is run twice."""
    member = pair._members[0]
    prompt = member.tokenizer.reader.read_text("The quick brown fox jumps over the lazy dog. The dog sleeps;")
    with torch.inference_mode():
        whole = MemberRow(prompt, member.tokenizer, speaks=True)
        expected = member.next_logits([whole])
        whole.release()  # the next row would take over what it holds
        for limit in (1, 2, 7, 1000):
            row = MemberRow(prompt, member.tokenizer, speaks=True)
            run = []
            while n := member.prefill(row, limit):
                run.append(n)
            assert max(run) <= limit
            assert sum(run) == len(row.ids) - 2
            assert row.pending == 2
            torch.testing.assert_close(member.next_logits([row]), expected)
            torch.testing.assert_close(row.logits_before, whole.logits_before)
            row.release()
