"""What the members thought: log-probabilities of chosen tokens and of given texts."""

import math

import pytest
import tiny
import torch
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from deepen_core import Ensemble
from deepen_core.engine.scoring import continuation_ids
from deepen_core.errors import ContextWindowError, MemberError, PromptError
from deepen_core.sampling.detokenizer import Utf8Stream

PROMPT = "The quick brown fox"


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

    answer = pair.generate(PROMPT, max_new_tokens=30, logprobs=4, ignore_eos=True, temperature=0.9, seed=10)
    models = {n: AutoModelForCausalLM.from_pretrained(folders[n]) for n in ("alpha", "beta")}
    vocabularies = {m.name: m.tokenizer.vocabulary for m in pair._engine.members}
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


@pytest.fixture(scope="module")
def fond(made_once):
    """A member that likes to say words."""
    words = ["Ġfox", "Ġdog", "Ġthe", "Ġa"]
    return made_once("fond", lambda root: tiny.save_fond(root, tiny.byte_level(), words, window=256))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": "adaptive"},
        {"gate": 0.2},
        {"weights": [1, 0]},
        *({"fusion": fusion} for fusion in ("product", "union", "translate", "bytes", "deepen-paper")),
    ],
    ids=str,
)
def test_which_tokens_are_greedy(fond, folders, options):
    """As sampled answers tell, whose tokens are sometimes the best ones; and nothing else of a score changes."""
    compared = []
    with Ensemble.load([fond, folders["beta"]], device="cpu", progress=False, **options) as ensemble:
        for seed in range(8):
            answer = ensemble.generate(
                PROMPT, max_new_tokens=6, ignore_eos=True, temperature=1.0, seed=seed, logprobs=1
            )
            scored = ensemble.score(PROMPT, answer.text, greedy=True)
            if scored.token_ids == answer.token_ids:
                assert scored.greedy == [token.top[0][0] == token.token_id for token in answer.logprobs]
                assert scored.logprobs == pytest.approx([token.logprob for token in answer.logprobs], abs=1e-4)
                assert ensemble.score(PROMPT, answer.text).greedy is None
                compared += scored.greedy
        several = ensemble.score(PROMPT, TEXTS, greedy=True)
        for text, one in zip(TEXTS, several, strict=True):
            assert one.greedy == ensemble.score(PROMPT, text, greedy=True).greedy
            assert one.logprobs == pytest.approx(ensemble.score(PROMPT, text).logprobs, abs=1e-4)
    assert set(compared) == {True, False}


def test_logprobs_cost_nothing_unless_asked_for(pair, monkeypatch):
    monkeypatch.setattr("deepen_core.engine.logprobs.TokenReporter.report", lambda *_: pytest.fail("reported"))
    assert pair.generate(PROMPT, max_new_tokens=3).logprobs is None


def test_score(load, pair, folders):
    """Fused log-probabilities of one member are its own; members' own are those of one forward."""
    from transformers import AutoModelForCausalLM

    text = " jumps over the dog"
    with load("alpha", "beta", weights=[1, 0]) as ensemble:
        alone = ensemble.score(PROMPT, text)
    assert [m.name for m in alone.members] == ["alpha"]
    assert alone.bytes == len(text)
    both = pair.score(PROMPT, text)
    for one in (both, *both.members):
        assert one.bits_per_byte == pytest.approx(-math.fsum(one.logprobs) / math.log(2) / len(text))
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
    ("number", "problem", "advice"),
    [
        (0, KeyError("x"), r"KeyError: 'x'\.$"),
        (0, MemoryError("x"), r"MemoryError: x\. Shorten the texts\.$"),
        (1, KeyError("x"), r"KeyError: 'x'\. With weight 0 it is not scored, and the others are\.$"),
        (1, MemoryError("x"), r"MemoryError: x\. Shorten the texts\. With weight 0 it is not scored"),
    ],
)
def test_a_member_that_fails_to_score(pair, monkeypatch, number, problem, advice):
    """Main has a score whatever its weight; only a lack of memory has to do with the length of the texts."""

    def fail(*_, **__):
        raise problem

    member = pair._engine.members[number]
    pair.score(PROMPT, " the dog")  # it is tried once how the member reads texts
    monkeypatch.setattr(member.model, "forward", fail)
    with pytest.raises(MemberError, match=rf"'{member.name}' failed to score \d+ tokens: {advice}"):
        pair.score(PROMPT, " the dog")
    monkeypatch.undo()
    assert pair.score(PROMPT, " the dog").logprobs


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((None, "x"), "holds texts or conversations"),
        (("x", 5), "The continuation is a int: give a text, or a list of texts"),
        (("x", ""), "The continuation is empty"),
        (("x", "\ud800"), "The continuation holds a lone surrogate"),
        (("\ud800", "x"), "The prompt holds a lone surrogate"),
        (([], "x"), "The conversation is empty"),
        (("x", ["y", ""]), "The continuation is empty"),
        ((["x"], ["y", "z"]), "There are 1 prompts for 2 continuations: give one for each, or one for all"),
        (({"x": 1}, ["y"]), "A prompt is a text or a list of messages, not a dict"),
    ],
)
def test_what_can_be_scored(pair, texts, message):
    with pytest.raises(PromptError, match=message):
        pair.score(*texts)


@given(
    prompt=st.sampled_from(["The do", "x", "", "  ", "你", "x\n", "a.", "if:\n"]),
    text=st.text("thedog \n你", min_size=1, max_size=12),
)
@settings(max_examples=examples(40), deadline=None)
def test_scored_ids_spell_the_continuation(pair, prompt, text):
    member = pair._engine.members[0]
    ids = continuation_ids(member.tokenizer, member.tokenizer.reader.read_text(prompt), text)
    assert member.tokenizer.vocabulary.join(ids) == text.encode()


def stepwise(monkeypatch):
    """From now on, members that read a text run it step by step, as an answer."""
    monkeypatch.setattr("deepen_core.engine.state_reader.tree_run_of", lambda *_: None)


def assert_alike(found, expected):
    assert found.token_ids == expected.token_ids
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert [m.token_ids for m in found.members] == [m.token_ids for m in expected.members]
    for one, other in zip(found.members, expected.members, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


TEXTS = [" jumps over the lazy dog. The dog sleeps;", " 你好，世界! naïve café 🙂🙃 end", "x\n\n    return  1\t", "er"]


@pytest.mark.parametrize("fusion", ["deepen", "product", "union", "translate", "bytes", "deepen-paper"])
@pytest.mark.parametrize("main", [0, 1])
def test_at_once_is_step_by_step(load, monkeypatch, fusion, main):
    """All states of a text in one forward, for texts whose tokens do not line up and whose characters are cut."""
    with load("alpha", "beta", main=main, fusion=fusion) as ensemble:
        together = [ensemble.score(PROMPT, text) for text in TEXTS]
        stepwise(monkeypatch)
        for found, text in zip(together, TEXTS, strict=True):
            assert_alike(found, ensemble.score(PROMPT, text))


@given(prompt=st.sampled_from(["The do", "x", "你", "a."]), text=st.text("thedogn's \n你🙂", min_size=1, max_size=40))
@settings(max_examples=examples(30), deadline=None)
def test_any_text_at_once_is_step_by_step(pair, prompt, text):
    together = pair.score(prompt, text)
    with pytest.MonkeyPatch.context() as patched:
        stepwise(patched)
        assert_alike(together, pair.score(prompt, text))


@pytest.mark.parametrize("weights", ["static", "adaptive"])
def test_several_are_what_each_is(load, weights):
    with load("alpha", "beta", weights=weights) as ensemble:
        singles = [ensemble.score(PROMPT, text) for text in TEXTS]
        for found, expected in zip(ensemble.score(PROMPT, TEXTS), singles, strict=True):
            assert_alike(found, expected)
        prompts = ["The quick", "x", PROMPT, ""]
        singles = [ensemble.score(*pair) for pair in zip(prompts, TEXTS, strict=True)]
        for found, expected in zip(ensemble.score(prompts, TEXTS), singles, strict=True):
            assert_alike(found, expected)
        assert ensemble.score(PROMPT, []) == []


def test_a_long_text_is_read_in_few_forwards(pair):
    """Ids run at most a quarter more often than there are, in forwards of up to 256."""
    text = " ".join(TEXTS[0] for _ in range(12))
    pair.score(PROMPT, "x")
    before = [(m.work.forwards, m.work.ids_run) for m in pair._engine.members]
    score = pair.score(PROMPT, text)
    steps = len(score.token_ids)
    for (forwards, run), member, own in zip(before, pair._engine.members, score.members, strict=True):
        assert member.work.forwards - forwards <= steps / 128 + 2
        assert member.work.ids_run - run <= 1.25 * (len(own.token_ids) + 10)


@pytest.mark.parametrize(("weights", "times"), [("adaptive", 1), ("context", 2)])
def test_choices_share_their_prompt(load, weights, times):
    """It is read once more to weigh the members by it."""
    prompt = " ".join(TEXTS[0] for _ in range(5))
    with load("alpha", "beta", weights=weights) as pair:
        pair.score(prompt, "x")
        before = [m.work.ids_run for m in pair._engine.members]
        pair.score(prompt, [" the dog", " the fox", " a girl", " 12"])
        for run, member in zip(before, pair._engine.members, strict=True):
            assert member.work.ids_run - run <= times * len(member.tokenizer.encode(prompt)) + 60


def test_a_conversation_before_the_text(pair, monkeypatch):
    asked = [{"role": "user", "content": "Where does the fox live?"}]
    answer = pair.generate(asked, max_new_tokens=8, logprobs=1, ignore_eos=True)
    scored = pair.score(asked, answer.text)
    if scored.token_ids == answer.token_ids:
        assert scored.logprobs == pytest.approx([t.logprob for t in answer.logprobs], abs=1e-4)
    stepwise(monkeypatch)
    assert_alike(scored, pair.score(asked, answer.text))


@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_asked_for_again(pair, monkeypatch, steps):
    """Places of a text that were run for an earlier one, and whose logits are not held any more."""
    texts = [
        " jumps over the lazy dog",
        " jumps over the lazy fox; the dog sleeps",
        " jumps",
        " jumps over the lazy dog",
    ]
    singles = [pair.score(PROMPT, text) for text in texts]
    monkeypatch.setattr("deepen_core.engine.reading.STEPS", steps)
    for found, expected in zip(pair.score(PROMPT, texts), singles, strict=True):
        assert_alike(found, expected)


def test_a_beginning_that_is_longer_than_the_whole(load, monkeypatch):
    """Beta has one token more for " nuevo" than for " nuevo." and needs room for both."""
    text = " nuevo."
    with load("alpha", "beta") as ensemble:
        beta = ensemble._engine.members[1]
        whole = len([*beta.tokenizer.reader.read_text(PROMPT).ids, *beta.tokenizer.encode(PROMPT + text)])
        monkeypatch.setattr(beta, "context_window", whole)
        with pytest.raises(ContextWindowError, match=rf"beginning of a text has {whole + 1} tokens for member 'beta'"):
            ensemble.score(PROMPT, text)
        monkeypatch.setattr(beta, "context_window", whole + 1)
        assert len(ensemble.score(PROMPT, text).logprobs) == 4
