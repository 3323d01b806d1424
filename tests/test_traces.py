"""What a trace says of each step is what independent calls say of the same text."""

import math
import pickle

import pytest
import torch

from deepen_core import Ensemble
from deepen_core.config import SamplingParams
from deepen_core.engine.step_fusion import fuse
from deepen_core.tracing import Trace

PROMPTS = ["The quick brown fox", "The dog sleeps;", "x"]
OPTIONS = {"max_new_tokens": 12, "ignore_eos": True}
STORY = "Bianca's home is in"


@pytest.fixture(scope="module")
def demo(needs_demo):
    with Ensemble.demo() as ensemble:
        yield ensemble


@pytest.fixture(scope="module")
def story(demo):
    return demo.generate(STORY, max_new_tokens=32, trace=True)


@pytest.mark.parametrize("fusion", ["deepen", "deepen-paper", "product", "union", "translate"])
def test_an_answer_is_the_same_with_a_trace(load, fusion):
    with load("alpha", "beta", fusion=fusion) as ensemble:
        plain = ensemble.generate(PROMPTS, logprobs=3, **OPTIONS)
        traced = ensemble.generate(PROMPTS, logprobs=3, trace=True, **OPTIONS)
    assert [answer.trace for answer in plain] == [None] * len(PROMPTS)
    assert [answer.token_ids for answer in plain] == [answer.token_ids for answer in traced]
    for before, answer in zip(plain, traced, strict=True):
        assert [step.token_id for step in answer.trace.steps] == answer.token_ids
        for token, step in zip(before.logprobs, answer.trace.steps, strict=True):
            assert step.probability == pytest.approx(math.exp(token.logprob), rel=1e-4)
            assert step.main_probability == pytest.approx(math.exp(token.members[0].logprob), rel=1e-4)
            assert [c.probability for c in step.top[:3]] == pytest.approx(
                [math.exp(p) for *_, p in token.top], rel=1e-4
            )
            for voice, own in zip(step.voices, token.members, strict=True):
                assert voice.spoke == bool(own.top)
                expected = [math.exp(p) for *_, p in own.top]
                assert [c.probability for c in voice.own[:3]] == pytest.approx(expected, rel=1e-4)
            assert sum(voice.weight for voice in step.voices) == pytest.approx(1.0)


def test_what_is_heard_is_what_the_member_would_answer_by_main_s_tokens(story):
    """Main's vocabulary with all weight on one member: its `score` is that member's voice, at every step."""
    for number in (0, 1):
        with Ensemble.demo(weights=[float(number == n) for n in (0, 1)]) as alone:
            known = alone.score(STORY, story.text)
        voices = [step.voices[number] for step in story.trace.steps]
        assert known.token_ids == story.token_ids
        assert [voice.probability for voice in voices] == pytest.approx([math.exp(p) for p in known.logprobs], rel=1e-3)


def test_how_far_fusion_moved_is_the_distance_of_the_distributions(demo, monkeypatch):
    seen = []

    def spy(*given):
        found = fuse(*given)
        seen.append((found.logprobs[0].double().exp(), found.own[0][0].double().exp()))
        return found

    monkeypatch.setattr("deepen_core.engine.decoder.fuse", spy)
    trace = demo.generate(STORY, max_new_tokens=8, trace=True).trace
    distances = [float((fused - own).abs().sum() / 2) for fused, own in seen]
    assert [step.moved for step in trace.steps] == pytest.approx(distances, abs=1e-5)
    assert max(distances) > 0.1


def test_who_decided(story):
    decided = {(step.decision, step.by) for step in story.trace.steps if step.decision != "agreement"}
    assert decided == {("other", "almanac-llama"), ("main", "atlas-gpt2")}
    for step in story.trace.steps:
        tops = [voice.heard[0].text for voice in step.voices]
        if step.decision == "agreement":
            assert step.voices[0].own[0].text == step.text
            assert tops[1] == step.text or step.text.startswith(tops[1])
        else:
            assert tops != [step.text] * 2
        assert (step.decision == "other") == (tops[0] != step.text)
        assert step.is_likeliest
    agreed = sum(step.decision == "agreement" for step in story.trace.steps)
    assert agreed + sum(one.decided for one in story.trace.summary()) == len(story.trace.steps) == 32


def test_a_gate_skips_members_and_a_member_that_answers_alone_is_alone(demo):
    with Ensemble.demo(gate=0.9) as gated:
        trace = gated.generate(STORY, max_new_tokens=32, trace=True).trace
    statuses = [step.voices[1].status for step in trace.steps]
    assert set(statuses) == {"spoke", "skipped"}
    for step in trace.steps:
        sure = step.voices[0].own[0].probability >= 0.9
        assert step.voices[1].status == ("skipped" if sure else "spoke")
        if sure:
            assert (step.decision, step.by, step.moved) == ("alone", "atlas-gpt2", 0.0)
            assert step.voices[1].heard == step.voices[1].own == ()
    summary = trace.summary()[1]
    assert (summary.spoke, summary.silent) == (statuses.count("spoke"), statuses.count("skipped"))
    alone = demo.alone("almanac-llama").generate(STORY, max_new_tokens=4, trace=True).trace
    assert alone.members == (alone.main,) == ("almanac-llama",)
    assert {step.decision for step in alone.steps} == {"alone"}


def test_a_member_waits_for_the_rest_of_a_character(pair):
    trace = pair.generate("x", choices=["你好"], trace=True).trace
    assert "".join(trace.pieces()).rstrip("\ufffd") == "你好"
    assert {step.voices[1].status for step in trace.steps} == {"spoke", "waiting"}
    assert trace == Trace.from_jsonl(trace.to_jsonl())


def test_a_member_that_fails_is_dropped(load, monkeypatch):
    with load("alpha", "beta", on_member_error="drop") as ensemble:
        member, calls = ensemble._engine.members[1], []
        run = type(member).next_logits

        def failing(self, sequences):
            calls.append(1)
            if self is member and len(calls) > 6:
                raise RuntimeError("it broke")
            return run(self, sequences)

        monkeypatch.setattr(type(member), "next_logits", failing)
        trace = ensemble.generate("The quick", trace=True, **OPTIONS).trace
    statuses = [step.voices[1].status for step in trace.steps]
    assert statuses[0] == "spoke"
    assert statuses[-1] == "dropped"
    assert trace.steps[-1].decision == "alone"


def test_the_end_of_a_text_is_a_step(demo):
    answer = demo.generate("Question: Where does Felix live?\nAnswer:", trace=True)
    assert answer.finish_reason == "stop"
    assert len(answer.trace.steps) == len(answer.token_ids) + 1
    assert answer.trace.steps[-1].ends
    assert "".join(answer.trace.pieces()) == answer.text


@pytest.mark.parametrize("fusion", ["union", "translate"])
def test_strategies_that_do_not_compare_show_tokens_of_the_same_bytes(needs_demo, fusion):
    with Ensemble.demo(fusion=fusion) as ensemble:
        trace = ensemble.generate("Question: Where does Felix live?\nAnswer:", trace=True).trace
        mine = ensemble._engine.main_member.tokenizer.vocabulary
    city, end = trace.steps
    voice = city.voices[1]
    assert voice.heard[0].text == voice.own[0].text == " Lisbon"
    assert voice.probability == pytest.approx(voice.own[0].probability)
    for heard in voice.heard:
        assert heard.text.encode() in mine.tokens
        begun = [
            own.probability for own in voice.own if mine.longest_beginning(own.text.encode()) == id_of(mine, heard)
        ]
        assert heard.probability == pytest.approx(sum(begun))
    assert (city.decision, end.decision, end.ends) == ("agreement", "agreement", True)
    assert end.voices[1].own[0].text != end.voices[1].heard[0].text  # each has an end of its own


def id_of(vocabulary, candidate):
    return vocabulary.id_of(candidate.text.encode())


def test_chunks_have_the_steps_since_the_last_one(demo):
    chunks = list(demo.stream(STORY, max_new_tokens=16, stop="number", trace=True))
    whole = chunks[-1].generation
    assert sum(len(chunk.trace.steps) for chunk in chunks) == len(whole.trace.steps) > 1
    assert whole.finish_reason == "stop"
    joined = chunks[0].trace
    for chunk in chunks[1:]:
        joined = joined + chunk.trace
    assert joined == whole.trace
    slow = demo.submit(STORY, max_new_tokens=40, trace=True)  # a reader that comes late gets joined chunks
    whole = slow.result()
    assert sum(len(chunk.trace.steps) for chunk in slow) == 40 == len(whole.trace.steps)


def test_sampling_and_constraints_show_what_was_not_likeliest(demo):
    likeliest = demo.generate(STORY, max_new_tokens=1).text
    asked = " Q[a-z]+" if not likeliest.startswith(" Q") else " L[a-z]+"
    trace = demo.generate(STORY, regex=asked, max_new_tokens=8, trace=True).trace
    assert not trace.steps[0].is_likeliest
    assert trace.steps[0].probability < trace.steps[0].top[0].probability


def test_copies_hold_the_steps_and_no_models(story):
    copied = pickle.loads(pickle.dumps(story))
    assert copied.trace == story.trace
    with pytest.raises(TypeError):
        hash(story.trace)
    assert "32 steps" in repr(story.trace)
    assert story.trace != "a trace"


def test_several_requests_together_have_the_trace_of_each_alone(demo):
    prompts = [STORY, "Anna's home is in", "Question: Where does Felix live?\nAnswer:"]
    each = [demo.generate(prompt, max_new_tokens=10, trace=True).trace for prompt in prompts]
    options = [SamplingParams(max_new_tokens=10, trace=place < len(prompts)) for place in range(4)]
    *mixed, plain = demo.generate([*prompts, STORY], options)
    assert plain.trace is None
    for alone, together in zip(each, mixed, strict=True):
        assert [step.text for step in alone.steps] == [step.text for step in together.trace.steps]
        assert [step.by for step in alone.steps] == [step.by for step in together.trace.steps]
        assert torch.allclose(
            torch.tensor([step.moved for step in alone.steps]),
            torch.tensor([step.moved for step in together.trace.steps]),
            atol=1e-3,
        )


def test_votes_carry_traces(demo):
    choice = demo.vote("Question: Where does Felix live?\nAnswer:", n=3, seed=1, max_new_tokens=6, trace=True)
    assert all(candidate.generation.trace.steps for candidate in choice.candidates)
