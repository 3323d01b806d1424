"""Encoder-decoder members, alone and with others: each family against `transformers`."""

import gc
import math

import pytest
import torch
from seq2seq_parts import FAMILIES, TEXTS, Alone, config

from deepen_core import Ensemble, SamplingParams
from deepen_core.errors import ContextWindowError, MemberError
from deepen_core.sampling.detokenizer import Utf8Stream
from deepen_core.voting.sampling import likelihood_of

NEW_TOKENS = 20


@pytest.fixture(scope="module")
def mixed(seq2seq_folders, folders):
    """Ensembles of an encoder-decoder model and a decoder-only one, by family and main member."""
    loaded = {}

    def load(family, main, **options):
        key = family, main, *sorted(options.items())
        if key not in loaded:
            models = [config(seq2seq_folders, family), folders["alpha"]]
            loaded[key] = Ensemble.load(models, main=main, progress=False, device="cpu", **options)
        return loaded[key]

    yield load
    for ensemble in loaded.values():
        ensemble.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_alone_is_what_transformers_generates(seq2seq_folders, family, dtype):
    alone = Alone(seq2seq_folders[family], family, getattr(torch, dtype))
    expected = [alone.greedy(text, NEW_TOKENS) for text in TEXTS[:9]]
    assert len(set(map(tuple, expected))) > 6
    with Ensemble.load([config(seq2seq_folders, family)], dtype=dtype, progress=False, device="cpu") as ensemble:
        found = [ensemble.generate(text, max_new_tokens=NEW_TOKENS) for text in TEXTS[:9]]
        member = ensemble.info.members[0]
    assert [answer.token_ids for answer in found] == expected
    assert [answer.usage.prompt_tokens for answer in found] == [len(alone.tokenizer(t)["input_ids"]) for t in TEXTS[:9]]
    assert member.architecture.endswith("(encoder-decoder)")
    assert member.batching == "ragged"
    assert member.source_window == member.context_window == (256 if family == "t5" else 128)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_weight_only_for_itself(mixed, seq2seq_folders, family):
    """As main with a silent other, it says what it says alone."""
    alone = Alone(seq2seq_folders[family], family)
    found = mixed(family, 0, weights=(1.0, 0.0)).generate(TEXTS[:4], max_new_tokens=NEW_TOKENS)
    assert [answer.token_ids for answer in found] == [alone.greedy(text, NEW_TOKENS) for text in TEXTS[:4]]


@pytest.mark.parametrize("main", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_say_what_single_requests_say(mixed, family, main):
    ensemble = mixed(family, main)
    params = [SamplingParams(max_new_tokens=4 + 7 * n % 23, ignore_eos=True) for n in range(len(TEXTS))]
    single = [ensemble.generate(text, one) for text, one in zip(TEXTS, params, strict=True)]
    handles = [ensemble.submit(text, one) for text, one in zip(TEXTS, params, strict=True)]
    assert [handle.result().token_ids for handle in handles] == [answer.token_ids for answer in single]
    assert len({answer.text for answer in single}) > len(TEXTS) // 2


@pytest.mark.parametrize("main", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_states_are_those_of_the_whole_text(mixed, seq2seq_folders, family, main):
    """In a batch of texts of different lengths, some of which were shortened when they were encoded again."""
    alone = Alone(seq2seq_folders[family], family)
    ensemble = mixed(family, main)
    decoder, member = ensemble._engine.decoder, ensemble._engine.members[0]
    # Padding, which a random model may well choose, has no position in NLLB: run again with others, they all move.
    params = SamplingParams(max_new_tokens=40, ignore_eos=True, logit_bias={alone.tokenizer.pad_token_id: -100.0})
    running = [decoder.start(text, params) for text in TEXTS]
    for step in range(14):
        decoder.step(running[: 3 * (step + 1)])  # they join one after another
    parts = [sequence.member_sequences[0] for sequence in running]
    with torch.inference_mode():
        found = member.next_logits(parts)
    for part, logits in zip(parts, found, strict=True):
        whole = alone.logits(part.source, part.ids)[-1]
        said = logits > -1e29  # the others are ruled out by generation_config.json
        assert int((~said).sum()) == (family == "marian")
        torch.testing.assert_close(logits[said], whole[said], atol=2e-3, rtol=1e-3)
    if main == 1:
        main = ensemble._engine.main_member.tokenizer.vocabulary
        for part, sequence in zip(parts, running, strict=True):
            told = Utf8Stream().feed(main.join(sequence.token_ids)).lstrip(" ")
            assert part.ids == [*alone.start, *member.tokenizer.encode(told)]
        assert len({len(part.ids) for part in parts}) > 3
    for sequence in running:
        sequence.finish("cancelled")


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_and_several_answers(mixed, family):
    ensemble = mixed(family, 1)
    whole = ensemble.generate(TEXTS[4], max_new_tokens=12, seed=5, temperature=1.0)
    chunks = list(ensemble.stream(TEXTS[4], max_new_tokens=12, seed=5, temperature=1.0))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].generation.token_ids == whole.token_ids
    work = {one.name: one for one in whole.member_work}[ensemble._engine.members[0].name]
    assert work.prompt_tokens == len(ensemble._engine.members[0].tokenizer.reader.read_text(TEXTS[4]).source)


class Counted:
    """Counts the runs of a model's encoder and decoder, in prompts or texts and in forwards."""

    def __init__(self, model):
        self.encoded = self.encodings = self.decoded = 0
        self._hooks = [
            model.get_encoder().register_forward_hook(self._encode),
            model.get_decoder().register_forward_hook(self._decode),
        ]

    def _encode(self, _module, _inputs, output):
        self.encodings += 1
        self.encoded += len(output.last_hidden_state)

    def _decode(self, _module, _inputs, _output):
        self.decoded += 1

    def remove(self):
        for hook in self._hooks:
            hook.remove()


@pytest.mark.parametrize("main", [0, 1])
def test_the_encoder_reads_a_prompt_once(mixed, main):
    """Once for a request, and once for several answers to the same prompt."""
    ensemble = mixed("t5", main)
    counted = Counted(ensemble._engine.members[0].model)
    ensemble.generate(TEXTS[5], max_new_tokens=15, ignore_eos=True)
    assert (counted.encoded, counted.encodings) == (1, 1)
    assert counted.decoded > 9
    handles = [ensemble.submit(TEXTS[5], max_new_tokens=15, temperature=1.0, seed=n, ignore_eos=True) for n in range(4)]
    answers = [handle.result() for handle in handles]
    assert counted.encoded == 2
    assert len({answer.text for answer in answers}) == 4
    alone = [ensemble.generate(TEXTS[5], max_new_tokens=15, temperature=1.0, seed=n, ignore_eos=True) for n in range(4)]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]
    assert counted.encoded == 6
    ensemble.generate(list(TEXTS[:6]), max_new_tokens=5)
    assert counted.encoded == 12
    counted.remove()


def test_prompts_to_encode_count_among_what_is_to_be_run(mixed):
    """So that many new requests do not hold up those that decode."""
    ensemble = mixed("marian", 0, weights=(1.0, 0.0))
    decoder, read = ensemble._engine.decoder, ensemble._engine.members[0].tokenizer.reader.read_text(TEXTS[2])
    sequence = decoder.start(TEXTS[2], SamplingParams(max_new_tokens=8, ignore_eos=True))
    assert sequence.pending == len(read.source) + len(read.ids)
    decoder.step([sequence])
    assert sequence.pending == 1
    sequence.finish("cancelled")


def test_memory_is_freed_with_the_requests(mixed):
    ensemble = mixed("bart", 0)
    forward = ensemble._engine.members[0]._way[0]._forward
    decoder = ensemble._engine.decoder
    running = [decoder.start(text, SamplingParams(max_new_tokens=8)) for text in TEXTS[:4]]
    decoder.step(running)
    assert len(forward._sources.slots) == len(forward._texts.slots) == 4
    running[0].finish("cancelled")
    del running[1]
    gc.collect()
    with forward.busy():
        assert len(forward._sources.slots) == len(forward._texts.slots) == 2
    for sequence in running:
        sequence.finish("cancelled")
    with forward.busy():
        assert not forward._sources.slots
        assert not forward._sources.layers
        assert not forward._texts.layers


@pytest.mark.parametrize("main", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores(mixed, seq2seq_folders, family, main):
    """A decoder scores the text after the ids that start it, without the blank that a prompt would ask for."""
    alone, ensemble = Alone(seq2seq_folders[family], family), mixed(family, main)
    name = ensemble._engine.members[0].name
    texts = [" the quick brown fox", "Der Hund schläft, die Füchsin läuft"]
    for text, score in zip(texts, ensemble.score("Once upon a time", texts), strict=True):
        own = {one.name: one for one in score.members}[name]
        source = ensemble._engine.members[0].tokenizer.reader.read_text("Once upon a time").source
        assert list(source) == alone.tokenizer("Once upon a time")["input_ids"]
        assert own.token_ids == ensemble._engine.members[0].tokenizer.encode(text.lstrip())
        ids = [*alone.start, *own.token_ids]
        logprobs = torch.log_softmax(alone.logits(source, ids), -1)
        expected = [float(logprobs[n - 1, ids[n]]) for n in range(len(alone.start), len(ids))]
        assert own.logprobs == pytest.approx(expected, abs=2e-3)
        if main == 0:
            assert score.token_ids == own.token_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_is_begun_goes_on_in_the_decoder(mixed, seq2seq_folders, family):
    asked, begun = "Once upon a time", "The quick"
    prompt = [{"role": "user", "content": asked}, {"role": "assistant", "content": begun, "prefix": True}]
    alone = Alone(seq2seq_folders[family], family)
    source = alone.tokenizer(asked)["input_ids"]
    for main in (0, 1):
        ensemble = mixed(family, main)
        member = ensemble._engine.members[0]
        own = {one.name: one for one in ensemble.score(prompt, " brown fox").members}[member.name]
        ids = [*alone.start, *member.tokenizer.encode(begun + " brown fox")]
        first = len(ids) - len(own.token_ids)
        assert own.token_ids == ids[first:]
        assert first > len(alone.start)
        logprobs = torch.log_softmax(alone.logits(source, ids), -1)
        assert own.logprobs == pytest.approx([float(logprobs[n - 1, ids[n]]) for n in range(first, len(ids))], abs=2e-3)
    by_itself = mixed(family, 0).alone(0)
    answer = by_itself.generate(prompt, max_new_tokens=6)
    said = [*alone.start, *by_itself.tokenize(begun)]
    for token_id in answer.token_ids:
        assert int(alone.logits(source, said)[-1].argmax()) == token_id
        said.append(token_id)


def test_fused_scores_are_those_of_the_steps_of_an_answer(mixed):
    """The fused log-probabilities of an answer are those that were reported when it was generated."""
    for family, main in (("t5", 0), ("t5", 1), ("bart", 1), ("nllb", 0)):
        ensemble = mixed(family, main, weights="static")  # a score does not know what a regex forced
        answer = ensemble.generate("The quick", max_new_tokens=8, logprobs=0, ignore_eos=True, regex="[ a-z]+")
        score = ensemble.score("The quick", answer.text)
        if score.token_ids == answer.token_ids:
            assert score.logprobs == pytest.approx([one.logprob for one in answer.logprobs], abs=1e-3)


def test_an_answer_without_tokens_is_the_least_likely(mixed):
    """A blank begins a text of this decoder, and is none of its tokens: other answers have their likelihoods."""
    empty, likely = likelihood_of(mixed("bart", 0)._engine, "The quick")([" ", "fox"])
    assert empty < likely == mixed("bart", 0).score("The quick", "fox").total / 3
    assert math.isinf(empty)


class TestLimits:
    def test_prompts_longer_than_the_encoder(self, mixed):
        ensemble = mixed("bart", 0)
        fits = ensemble.generate("a b " * 60, max_new_tokens=3)
        assert 64 < fits.usage.prompt_tokens <= 128
        with pytest.raises(ContextWindowError, match="for the encoder of member 'bart', which reads at most 128"):
            ensemble.generate("a b " * 70, max_new_tokens=3)

    def test_answers_end_where_the_decoder_does(self, mixed):
        """Its room does not depend on the prompt."""
        ensemble = mixed("bart", 0, weights=(1.0, 0.0))
        answer = ensemble.generate("a b " * 30, max_new_tokens=500, ignore_eos=True)
        assert len(answer.token_ids) == 128 - 2
        assert "max_new_tokens was lowered from 500 to 126" in answer.warnings[0]

    def test_an_other_member_whose_decoder_is_full(self, seq2seq_folders, folders):
        models = [folders["alpha"], config(seq2seq_folders, "bart", context_window=20)]
        with Ensemble.load(models, progress=False, device="cpu") as ensemble:
            answer = ensemble.generate("The quick", max_new_tokens=100, ignore_eos=True)
        assert answer.finish_reason == "length"
        assert "fills the context window of member 'bart', 20 tokens" in answer.warnings[0]


class TestFailures:
    @pytest.fixture
    def failing(self, seq2seq_folders, folders):
        models = [folders["alpha"], config(seq2seq_folders, "t5")]
        with Ensemble.load(models, progress=False, device="cpu") as ensemble:
            member = ensemble._engine.members[1]
            yield ensemble, member.model.get_encoder(), member.model.get_decoder()

    def test_a_request_whose_prompt_cannot_be_encoded(self, failing):
        """The others of its batch go on."""
        ensemble, encoder, _ = failing
        bad = ensemble._engine.members[1].tokenizer.reader.read_text("no").source

        def refuse(_module, _args, given):
            if any(tuple(line[: len(bad)].tolist()) == bad for line in given["input_ids"]):
                raise RuntimeError("it does not like this")

        expected = ensemble.generate(TEXTS[:2], max_new_tokens=6, ignore_eos=True)
        hook = encoder.register_forward_pre_hook(refuse, with_kwargs=True)
        found = ensemble.generate([*TEXTS[:2], "no"], max_new_tokens=6, ignore_eos=True, return_exceptions=True)
        assert [answer.token_ids for answer in found[:2]] == [answer.token_ids for answer in expected]
        assert isinstance(found[2], MemberError)
        dropped = ensemble.generate("no", max_new_tokens=6, on_member_error="drop")
        assert "'t5' failed and was dropped from token 1" in dropped.warnings[0]
        hook.remove()

    def test_a_decoder_that_fails_once(self, failing):
        """What it had computed in a batch is computed again, one by one."""
        ensemble, _, decoder = failing
        expected = [answer.token_ids for answer in ensemble.generate(TEXTS[:3], max_new_tokens=9, ignore_eos=True)]
        runs = []

        def fail_once(_module, _inputs, _output):
            runs.append(1)
            if len(runs) == 5:
                raise RuntimeError("once")

        hook = decoder.register_forward_hook(fail_once)
        found = ensemble.generate(TEXTS[:3], max_new_tokens=9, ignore_eos=True)
        hook.remove()
        assert [answer.token_ids for answer in found] == expected
        assert len(runs) > 9


def test_gates_and_policies(seq2seq_folders, folders):
    """A member that is not asked catches up with many ids at once."""
    models = [folders["alpha"], config(seq2seq_folders, "marian")]
    with Ensemble.load(models, gate=0.3, progress=False, device="cpu") as ensemble:
        answers = ensemble.generate(TEXTS[:5], max_new_tokens=24, ignore_eos=True)
        steps = [one.steps for answer in answers for one in answer.member_work if one.name == "marian"]
    assert 0 < sum(steps) < 5 * 24
    for weights in ("adaptive", "confidence", "consistency"):
        with Ensemble.load(models, weights=weights, progress=False, device="cpu") as ensemble:
            assert ensemble.generate("The quick", max_new_tokens=6, ignore_eos=True).usage.completion_tokens == 6


def test_prompts_that_a_translator_does_not_predict_are_not_read(seq2seq_folders, folders, monkeypatch):
    """What the other member would find could be compared with nothing."""
    found, models = [], [folders["alpha"], config(seq2seq_folders, "marian")]
    for weights in ("adaptive", "context"):
        with Ensemble.load(models, weights=weights, progress=False, device="cpu") as ensemble:
            answer = ensemble.generate(TEXTS[0], max_new_tokens=6, ignore_eos=True, logprobs=0)
            score = ensemble.score(TEXTS[0], " a story")
        found.append([*(token.logprob for token in answer.logprobs), *score.logprobs])
        monkeypatch.setattr("deepen_core.engine.prompt_likelihood._logprobs", lambda *_: pytest.fail("it was read"))
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_two_translators_and_a_closed_ensemble(seq2seq_folders):
    models = [config(seq2seq_folders, "nllb"), config(seq2seq_folders, "marian")]
    with Ensemble.load(models, progress=False, device="cpu") as ensemble:
        single = [ensemble.generate(text, max_new_tokens=8, ignore_eos=True).token_ids for text in TEXTS[:4]]
        found = ensemble.generate(TEXTS[:4], max_new_tokens=8, ignore_eos=True)
        running = ensemble.stream(TEXTS[0], max_new_tokens=100, ignore_eos=True)
        next(running)
    assert [answer.token_ids for answer in found] == single
    with pytest.raises(Exception, match="closed"):
        list(running)
