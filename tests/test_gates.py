"""Members that are asked only where main is not sure."""

import math
from dataclasses import replace

import pytest
import torch
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen_core.engine.scoring import TextReader
from deepen_core.errors import ConfigurationError
from deepen_core.fusion.gates import Gate, TopProbabilityGate, gate_of
from deepen_core.sampling.detokenizer import Utf8Stream
from deepen_integrations.langchain import DeepenLLM

PROMPTS = ["The quick brown fox", "The dog sleeps;", "你好，", "x"]
OPTIONS = {"max_new_tokens": 24, "ignore_eos": True}


@given(top=st.floats(0.01, 0.99), threshold=st.floats(0, 1))
def test_the_rule(top, threshold):
    logprobs = torch.tensor([[top, 1 - top], [1 - top, top]]).log()
    opened = TopProbabilityGate(threshold).opens(logprobs).tolist()
    most = max(top, 1 - top)
    if abs(most - threshold) > 1e-5:
        assert opened == [most < threshold] * 2


@pytest.mark.parametrize("fusion", ["deepen", "union"])
def test_at_the_ends(load, fusion):
    """At 0 main answers alone, and at 1 the others are always asked."""
    asked = {"gate": 0.0}, {"weights": [1, 0]}, {"gate": 1.0}, {}
    found = []
    for options in asked:
        with load("alpha", "beta", fusion=fusion, **options) as ensemble:
            found.append([answer.token_ids for answer in ensemble.generate(PROMPTS, **OPTIONS)])
    assert found[0] == found[1] != found[2] == found[3]
    assert gate_of(1.0) is gate_of(None) is None


@pytest.fixture(scope="module")
def thresholds(pair):
    """Some between which main's top probability lies at times, and none that it is."""
    answer = pair.generate(PROMPTS[0], logprobs=1, **OPTIONS)
    tops = sorted(token.members[0].top[0][2] for token in answer.logprobs)
    return [math.exp((tops[place] + tops[place + 1]) / 2) for place in (8, 16)]


def read(ensemble, prompt, answer):
    """Log-probabilities of the answer's tokens, read as a given text."""
    [reading] = TextReader(ensemble._engine).readings([(prompt, answer.text)])
    reading.texts[0] = replace(reading.texts[0], token_ids=answer.token_ids)
    known = {}
    return [value for steps in reading for value in ensemble._engine.decoder.logprobs_of(steps, known)]


@pytest.mark.parametrize("fusion", ["deepen", "product", "union"])
@pytest.mark.parametrize("weights", ["static", "adaptive"])
def test_answers_are_what_the_rule_says(load, thresholds, fusion, weights):
    """The step that runs members only where they are asked, against a text that all have read."""
    if weights == "adaptive" and fusion == "union":
        return
    for threshold in thresholds:
        with load("alpha", "beta", fusion=fusion, weights=weights, gate=threshold) as ensemble:
            assert ensemble.info.gate == f"main's top probability below {threshold:g}"
            answers = ensemble.generate(PROMPTS, logprobs=1, **OPTIONS)
            singles = [ensemble.generate(prompt, **OPTIONS) for prompt in PROMPTS]
            assert [a.token_ids for a in answers] == [a.token_ids for a in singles]
            for prompt, answer in zip(PROMPTS, answers, strict=True):
                unsure = [token.members[0].top[0][2] < torch.tensor(threshold).log() for token in answer.logprobs]
                spoke = [token.members[1].top != () for token in answer.logprobs]
                assert all(sure or not one for one, sure in zip(spoke, unsure, strict=True))
                main, other = answer.member_work
                assert (main.steps, other.steps) == (24, sum(spoke))
                assert read(ensemble, prompt, answer) == pytest.approx([t.logprob for t in answer.logprobs], abs=1e-4)
            assert 0 < sum(a.member_work[1].steps for a in answers) < 24 * len(answers)


@given(seed=st.integers(0, 100), threshold=st.floats(0.001, 0.2))
@settings(max_examples=examples(8), deadline=None)
def test_a_member_that_was_not_asked_catches_up(load, seed, threshold):
    """Its ids are those of the whole text, whenever it is asked again."""
    with load("alpha", "beta", gate=threshold) as ensemble:
        answer = ensemble.generate(PROMPTS[0], temperature=1.0, seed=seed, logprobs=1, **OPTIONS)
        main, beta = ensemble._engine.members
        tokens = beta.tokenizer
        for place, token in enumerate(answer.logprobs):
            own = token.members[1]
            if own.top:
                said = Utf8Stream().feed(main.tokenizer.vocabulary.join(answer.token_ids[:place]))
                ids = [*tokens.reader.read_text("").ids, *tokens.encode(PROMPTS[0] + said)]
                with torch.inference_mode():
                    logits = beta.model(torch.tensor([ids])).logits[0, -1]
                assert own.top[0][2] == pytest.approx(float(torch.log_softmax(logits, -1).amax()), abs=1e-4)


class Never(Gate):
    def opens(self, logprobs):
        return torch.zeros(len(logprobs), dtype=torch.bool)

    def describe(self):
        return "never"


def test_a_rule_of_ones_own(load):
    with load("alpha", "beta", gate=Never()) as ensemble:
        assert ensemble.info.gate == "never"
        answer = ensemble.generate(PROMPTS[0], **OPTIONS)
    assert [work.steps for work in answer.member_work] == [24, 0]
    assert answer.member_work[1].tokens_run == 0


def test_from_the_adapters(folders):
    llm = DeepenLLM(models=[str(folders["alpha"]), str(folders["beta"])], gate=0.0, max_new_tokens=4, device="cpu")
    assert llm.gate == 0.0
    assert llm.invoke("The quick")
    assert llm.ensemble.info.gate == "main's top probability below 0"
    for wrong in (-0.1, 1.5, "x"):
        with pytest.raises(ConfigurationError, match="gate"):
            DeepenLLM(models=["a", "b"], gate=wrong)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, "x", float("nan")])
def test_thresholds_are_probabilities(load, wrong):
    with pytest.raises(ConfigurationError, match="gate"):
        load("alpha", "beta", gate=wrong)
