"""Votes over answers of an ensemble and of its members, and members alone in the ensemble's batch."""

import gc
import math
import pickle
import weakref

import pytest

from deepen_core import Ensemble, SamplingParams
from deepen_core.chat.thoughts import Thoughts
from deepen_core.engine.scheduler import Scheduler
from deepen_core.errors import ClosedError, ConfigurationError, DecodingError, PromptError, SamplingError
from deepen_core.voting import majority_vote, minimum_bayes_risk
from deepen_core.voting import sampling as voting
from deepen_integrations.langchain import DeepenLLM

PROMPT = "The quick brown fox"
CHAT = [{"role": "user", "content": PROMPT}]
OPTIONS = {"max_new_tokens": 6, "ignore_eos": True}
SAMPLED = {**OPTIONS, "temperature": 1.2, "seed": 5}


@pytest.fixture(scope="module")
def apart(load):
    """Each member, loaded by itself."""
    with load("alpha") as alpha, load("beta") as beta:
        yield {"alpha": alpha, "beta": beta}


class TestVotes:
    @pytest.mark.parametrize("prompt", [PROMPT, CHAT])
    def test_answers_are_those_of_separate_calls(self, pair, apart, prompt):
        choice = pair.vote(prompt, n=3, among="all", **SAMPLED)
        sources = {"ensemble": pair, **apart}
        expected = [
            (label, each.generate(prompt, **{**SAMPLED, "seed": 5 + number}))
            for label, each in sources.items()
            for number in range(3)
        ]
        found = [(one.source, one.generation.text, one.generation.token_ids) for one in choice.candidates]
        assert found == [(label, answer.text, answer.token_ids) for label, answer in expected]
        assert [one.text for one in choice.candidates] == [answer.text for _, answer in expected]
        assert len({one.text for one in choice.candidates}) > 3
        members = pair.vote(prompt, n=3, among="members", **SAMPLED)
        assert [(one.source, one.text) for one in members.candidates] == [(f[0], f[1]) for f in found[3:]]
        assert pair.vote(prompt, n=3, among="all", **SAMPLED).place == choice.place

    def test_by_each_way(self, pair):
        options = {"n": 4, "among": "all", **SAMPLED}
        ways = {by: pair.vote(PROMPT, by=by, extract=r"(\w)", **options) for by in ("majority", "mbr", "likelihood")}
        texts = [one.text for one in ways["majority"].candidates]
        assert all([one.text for one in way.candidates] == texts for way in ways.values())
        values = [pair.score(PROMPT, text).total / len(text.encode()) for text in texts]
        assert [one.score for one in ways["likelihood"].candidates] == pytest.approx(values, abs=1e-4)
        assert ways["likelihood"].text == texts[max(range(len(texts)), key=values.__getitem__)]
        assert ways["mbr"].place == minimum_bayes_risk(texts).place
        alone = majority_vote(texts, extract=r"(\w)")
        best = [n for n, one in enumerate(alone.candidates) if one.score == alone.chosen.score]
        assert len(best) > 1
        assert ways["majority"].place == max(best, key=values.__getitem__)

    def test_texts_are_scored_in_one_call(self, pair, monkeypatch):
        calls = []
        score = voting.score

        def counted(engine, asked):
            calls.append(len(asked))
            return score(engine, asked)

        monkeypatch.setattr(voting, "score", counted)
        found = pair.vote(PROMPT, n=4, among="all", by="likelihood", **SAMPLED)
        assert calls == [len({one.text for one in found.candidates})]

    def test_all_are_decoded_together(self, load, monkeypatch):
        sizes = []
        decode = Scheduler._decode

        def spy(self):
            sizes.append(len(self._decoding))
            decode(self)

        monkeypatch.setattr(Scheduler, "_decode", spy)
        with load("alpha", "beta") as ensemble:
            ensemble.vote(PROMPT, n=4, among="all", **SAMPLED)
        assert max(sizes) == 12
        assert len([size for size in sizes if size]) < 12, "one after the other it would be 18 steps"

    def test_few_fit_into_a_batch(self, load, pair):
        with load("alpha", "beta", max_batch_size=2) as ensemble:
            found = ensemble.vote(PROMPT, n=3, among="all", **SAMPLED)
        assert found.text == pair.vote(PROMPT, n=3, among="all", **SAMPLED).text

    def test_defaults(self, pair):
        found = pair.vote(PROMPT, seed=5, **OPTIONS)
        texts = [one.text for one in found.candidates]
        same = pair.vote(PROMPT, SamplingParams(temperature=0.7), seed=5, **OPTIONS)
        assert texts == [one.text for one in same.candidates]
        assert (found.by, found.chosen.source) == ("majority", "ensemble")
        assert len(texts) == 5
        free = [pair.vote(PROMPT, n=2, temperature=2, **OPTIONS) for _ in range(4)]
        assert len({one.text for vote in free for one in vote.candidates}) > 2
        assert pair.vote(PROMPT, n=1, temperature=0, **OPTIONS).text == pair.generate(PROMPT, **OPTIONS).text

    def test_a_member_without_weight_does_not_vote(self, load):
        with load("alpha", "beta", weights=[1, 0]) as ensemble:
            found = ensemble.vote(PROMPT, n=2, among="members", **SAMPLED)
            assert [one.source for one in found.candidates] == ["alpha", "alpha"]
            assert ensemble.alone("beta").generate(PROMPT, **OPTIONS).text, "though it can be asked"

    def test_an_empty_answer_is_the_least_likely(self, pair):
        empty, likely = voting.likelihood_of(pair._engine, PROMPT)(["", " x"])
        assert empty < likely == pair.score(PROMPT, " x").total / 2
        stopped = pair.vote(PROMPT, n=2, by="likelihood", logit_bias={pair.tokenize("a")[0]: 100}, stop="a", seed=1)
        assert [(one.text, one.score) for one in stopped.candidates] == [("", None)] * 2

    def test_an_answer_that_fills_a_window_is_the_least_likely(self, pair):
        """It can be longer for another member than for the one that gave it."""
        likelihood = voting.likelihood_of(pair._engine, PROMPT)
        short, long = [" jumps", " a", " x"], " word" * 300
        values = likelihood(short)
        assert likelihood([short[0], long, short[1], short[2]]) == pytest.approx([values[0], -math.inf, *values[1:]])
        assert likelihood([long]) == [-math.inf]

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"n": 0}, "n is 0"),
            ({"n": True}, "n is True"),
            ({"n": 2.5}, "n is 2.5"),
            ({"n": 2, "temperature": 0}, "n is 2, but with temperature 0 all 2 answers are equal"),
            ({"among": "friends"}, "among ensemble, members, all, not 'friends'"),
            ({"by": "luck"}, "not by 'luck'"),
            ({"extract": "luck"}, "no group"),
            ({"votes": 3}, "votes"),
        ],
    )
    def test_wrong_options_are_refused_before_anything_runs(self, pair, monkeypatch, options, problem):
        monkeypatch.setattr(pair._worker, "submit", lambda *_: pytest.fail("it ran"))
        with pytest.raises(SamplingError, match=problem):
            pair.vote(PROMPT, **options)

    def test_a_member_that_fails_ends_the_vote_and_its_other_answers(self, load):
        with load("alpha", "beta") as ensemble:
            [beta] = [member for member in ensemble._engine.members if member.name == "beta"]
            beta.next_logits = lambda _: (_ for _ in ()).throw(ValueError("no"))
            with pytest.raises(Exception, match="Member 'beta' failed"):
                ensemble.vote(PROMPT, n=3, among="members", **{**SAMPLED, "max_new_tokens": 50})
            worker = ensemble._worker
            held = worker.call(lambda: worker._scheduler.sequences_held)
            assert held.result(timeout=30) in range(4)

    @pytest.mark.parametrize(
        ("text", "without"),
        [("Hm, 7.</think>6", "6"), ("Well.\n</think>\n\nIt is 7", "It is 7"), ("Endless", "")],
    )
    def test_thoughts_do_not_count(self, pair, monkeypatch, text, without):
        reader = type(pair._engine.main_member.tokenizer.reader)
        assert voting._without_thoughts(text, pair._engine, SamplingParams()) == text
        monkeypatch.setattr(reader, "thoughts", lambda *_: Thoughts("opened"))
        assert voting._without_thoughts(text, pair._engine, SamplingParams()) == without
        assert voting._without_thoughts(text, pair._engine, SamplingParams(regex="x*")) == text

    def test_several_prompts_are_refused(self, pair):
        with pytest.raises(PromptError, match="vote takes one prompt, and these are 2"):
            pair.vote([PROMPT, PROMPT])


class TestAlone:
    @pytest.mark.parametrize("name", ["alpha", "beta"])
    def test_is_the_member_as_if_it_were_loaded_by_itself(self, pair, apart, name):
        one, other = pair.alone(name), apart[name]
        for options in (OPTIONS, SAMPLED):
            assert one.generate(PROMPT, **options).token_ids == other.generate(PROMPT, **options).token_ids
            assert one.generate(CHAT, **options).text == other.generate(CHAT, **options).text
        pieces = [chunk.text for chunk in one.stream(PROMPT, **OPTIONS)]
        assert "".join(pieces) == other.generate(PROMPT, **OPTIONS).text
        assert one.score(PROMPT, " jumps").total == pytest.approx(other.score(PROMPT, " jumps").total, abs=1e-5)
        assert one.count_tokens(CHAT) == other.count_tokens(CHAT)
        assert one.tokenize(PROMPT) == other.tokenize(PROMPT)
        assert (one.main_name, one.context_window) == (name, other.context_window)
        assert one.info.fusion == "alone"
        assert [member.weight for member in one.info.members] == [float(n == name) for n in ("alpha", "beta")]
        assert one.alone("alpha").main_name == "alpha"

    async def test_async(self, pair, apart):
        one, expected = pair.alone("beta"), apart["beta"].generate(PROMPT, **OPTIONS).text
        assert (await one.agenerate(PROMPT, **OPTIONS)).text == expected
        assert "".join([chunk.text async for chunk in one.astream(PROMPT, **OPTIONS)]) == expected
        assert (await (await one.asubmit(PROMPT, **OPTIONS)).aresult()).text == expected

    def test_by_index_and_by_name(self, pair):
        assert pair.alone(-1).main_name == pair.alone(1).main_name == pair.alone("beta").main_name == "beta"
        for wrong in (2, "gamma", None):
            with pytest.raises(ConfigurationError, match="member is"):
                pair.alone(wrong)

    def test_both_decode_in_one_batch(self, load):
        with load("alpha", "beta") as ensemble:
            one = ensemble.alone("beta")
            expected = [each.generate(PROMPT, **OPTIONS).text for each in (ensemble, one)]
            handles = [each.submit(PROMPT, **OPTIONS) for each in (ensemble, one, ensemble)]
            assert [handle.result().text for handle in handles] == [*expected, expected[0]]

    def test_long_prompts_share_their_beginning_with_the_ensemble(self, load):
        long = "The lazy dog sleeps. " * 12
        with load("alpha", "beta") as ensemble:
            expected = [each.generate(long, **OPTIONS).text for each in (ensemble, ensemble.alone(1))]
            handles = [each.submit(long, **OPTIONS) for each in (ensemble, ensemble.alone(1))]
            assert [handle.result().text for handle in handles] == expected

    def test_a_step_that_fails_as_a_whole_ends_only_its_own_requests(self, load, monkeypatch):
        with load("alpha", "beta") as ensemble:
            one, expected = ensemble.alone("beta"), ensemble.generate(PROMPT, **OPTIONS).text
            monkeypatch.setattr(one._opened().decoder, "step", lambda _: {}["no step"])
            failing, other = one.submit(PROMPT, **OPTIONS), ensemble.submit(PROMPT, **OPTIONS)
            with pytest.raises(DecodingError, match="KeyError"):
                failing.result()
            assert other.result().text == expected

    def test_closing(self, load):
        ensemble = load("alpha", "beta")
        one, other = ensemble.alone(0), ensemble.alone(1)
        one.close()
        with pytest.raises(ClosedError):
            one.generate(PROMPT)
        assert other.generate(PROMPT, **OPTIONS).text
        handle = other.submit(PROMPT, **OPTIONS)
        handle.result()
        model = weakref.ref(ensemble._engine.members[1].model)
        ensemble.close()
        for work in (lambda: other.generate(PROMPT), lambda: other.info, lambda: other.tokenize("x")):
            with pytest.raises(ClosedError):
                work()
        gc.collect()
        assert model() is None

    def test_it_keeps_the_ensemble(self, load):
        one = load("alpha", "beta").alone(1)
        gc.collect()
        assert one.generate(PROMPT, **OPTIONS).text

    def test_in_an_adapter(self, pair, apart):
        llm = DeepenLLM.from_ensemble(pair.alone("beta"), **OPTIONS)
        assert llm.invoke(PROMPT) == apart["beta"].generate(PROMPT, **OPTIONS).text


def test_results_can_be_saved(pair):
    found = pair.vote(PROMPT, n=2, among="all", **SAMPLED)
    assert pickle.loads(pickle.dumps(found)) == found
    assert isinstance(pair.alone(0), Ensemble)
