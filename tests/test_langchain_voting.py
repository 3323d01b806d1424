"""The LangChain runnable that samples several answers and returns the one that wins."""

import copy
import json
import pickle

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListLLM
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_parts import MODELS, said, submissions
from pydantic import ValidationError

from deepen_core.errors import SamplingError
from deepen_core.voting import majority_vote, minimum_bayes_risk
from deepen_integrations.langchain import ChatDeepen, DeepenLLM, VotingRunnable

PROMPT = "The quick brown fox"
SAMPLED = {"max_new_tokens": 6, "ignore_eos": True, "temperature": 1.5, "seed": 5}


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__)
def model(request, pair):
    return request.param.from_ensemble(pair, **SAMPLED)


def each_alone(model, n=4, **options):
    return [said(model.invoke(PROMPT, seed=5 + number, **options)) for number in range(n)]


def fake_chat(*answers):
    return GenericFakeChatModel(messages=iter([AIMessage(a) if isinstance(a, str) else a for a in answers]))


async def asked(runnable, asynchronous, *given, **options):
    return await runnable.ainvoke(*given, **options) if asynchronous else runnable.invoke(*given, **options)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("by", ["majority", "mbr"])
async def test_the_winner_is_that_of_separate_answers(model, pair, by, asynchronous):
    voting = VotingRunnable(llm=model, n=4, by=by, extract=r"(\w)")
    with submissions(pair) as sizes:
        answer = await asked(voting, asynchronous, PROMPT)
    assert sizes == [4], "all in one batch"
    texts = each_alone(model)
    assert len({*texts}) > 2
    expected = majority_vote(texts, extract=r"(\w)") if by == "majority" else minimum_bayes_risk(texts, extract=r"(\w)")
    assert said(answer) == expected.text
    if isinstance(model, ChatDeepen):
        votes = answer.response_metadata["votes"]
        assert [one["text"] for one in votes["candidates"]] == texts
        assert (votes["by"], votes["answer"], votes["share"]) == (by, expected.answer, expected.share)
        assert votes["votes"] == expected.votes
        assert [one["score"] for one in votes["candidates"]] == [one.score for one in expected.candidates]
        assert answer.response_metadata["model_provider"] == "deepen"
        assert json.dumps(votes)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_by_likelihood(model, pair, asynchronous):
    answer = await asked(VotingRunnable(llm=model, n=4, by="likelihood"), asynchronous, PROMPT)
    prompt = [{"role": "user", "content": PROMPT}] if isinstance(model, ChatDeepen) else PROMPT
    found = [pair.generate(prompt, **{**SAMPLED, "seed": 5 + n}, logprobs=0) for n in range(4)]
    values = [sum(t.logprob for t in one.logprobs) / sum(len(t.token) for t in one.logprobs) for one in found]
    assert said(answer) == found[values.index(max(values))].text
    if isinstance(model, ChatDeepen):
        scores = [one["score"] for one in answer.response_metadata["votes"]["candidates"]]
        assert scores == pytest.approx(values)


def test_bound_options_are_kept(model, pair):
    texts = each_alone(model, n=3, max_new_tokens=3)
    bound = model.bind(max_new_tokens=3).with_config(tags=["x"])
    with submissions(pair) as sizes:
        assert said(VotingRunnable(llm=bound, n=3).invoke(PROMPT)) == majority_vote(texts).text
        assert said(VotingRunnable(llm=model, n=3).invoke(PROMPT, max_new_tokens=3)) == majority_vote(texts).text
        configurable = model.configurable_fields(max_new_tokens=ConfigurableField(id="length"))
        voting = VotingRunnable(llm=configurable, n=3)
        config = {"configurable": {"length": 3}}
        assert said(voting.invoke(PROMPT, config)) == majority_vote(texts).text
    assert sizes == [3, 3, 3]


def test_what_is_configurable(model):
    voting = VotingRunnable(llm=model, n=2).configurable_fields(
        n=ConfigurableField(id="n"), by=ConfigurableField(id="by")
    )
    answer = voting.with_config(configurable={"n": 4, "by": "mbr"}).invoke(PROMPT)
    assert said(answer) == minimum_bayes_risk(each_alone(model)).text


def test_in_chains_and_batches(model):
    voting = VotingRunnable(llm=model, n=3)
    expected = [majority_vote(each_alone(model, n=3)).text] * 2
    assert (voting | StrOutputParser()).batch([PROMPT] * 2) == expected
    assert ["".join(map(said, voting.stream(PROMPT)))] * 2 == expected
    messages = VotingRunnable(llm=model, n=2).invoke([HumanMessage(PROMPT)])
    assert said(messages)


async def test_in_async_batches(model):
    answers = await VotingRunnable(llm=model, n=3).abatch([PROMPT] * 2)
    assert [*map(said, answers)] == [majority_vote(each_alone(model, n=3)).text] * 2


def test_single_members_vote_too(pair):
    options = {**SAMPLED, "temperature": 1.0}
    models = [ChatDeepen.from_ensemble(each, **options) for each in (pair, pair.alone(0), pair.alone(1))]
    voting = VotingRunnable(llm=models[0], others=models[1:], n=3)
    found = voting.invoke(PROMPT).response_metadata["votes"]
    prompt = [{"role": "user", "content": PROMPT}]
    assert [one["text"] for one in found["candidates"]] == [
        one.text for one in pair.vote(prompt, n=3, among="all", **options).candidates
    ]


def test_copies(model):
    voting = VotingRunnable(llm=model, n=3, extract=r"(\w)", by="mbr")
    expected = said(voting.invoke(PROMPT))
    for copied in (copy.copy(voting), copy.deepcopy(voting), voting.model_copy(), pickle.loads(pickle.dumps(voting))):
        assert copied == voting
        assert said(copied.invoke(PROMPT)) == expected


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("kind", MODELS, ids=lambda model: model.__name__)
def test_dumps_and_loads(kind):
    voting = VotingRunnable(llm=kind.demo(temperature=0.5), others=[kind.demo(seed=3)], n=3, extract="number")
    restored = loads(dumps(voting), allowed_objects=[VotingRunnable, kind], valid_namespaces=["deepen_integrations"])
    assert restored == voting


class TestOtherModels:
    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_any_chat_model(self, asynchronous):
        voting = VotingRunnable(llm=fake_chat("It is 4.", "5", "2 + 2 = 4"), n=3, extract="number")
        answer = await asked(voting, asynchronous, "2 + 2?", {"max_concurrency": 1})
        assert answer.response_metadata["votes"]["votes"] == {"4": 2, "5": 1}
        assert answer.content in ("It is 4.", "2 + 2 = 4")

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_any_text_model(self, asynchronous):
        voting = VotingRunnable(llm=FakeListLLM(responses=["b", "The Answer!", "answer"]), n=3)
        assert await asked(voting, asynchronous, "?") == "The Answer!"

    def test_a_runnable(self):
        assert VotingRunnable(llm=RunnableLambda(lambda text: text.upper()), n=2).invoke("abc") == "ABC"

    def test_tool_calls_are_compared_whole(self):
        def calling(value):
            return AIMessage("", tool_calls=[{"name": "add", "args": {"a": value, "b": 1}, "id": str(value)}])

        voting = VotingRunnable(llm=fake_chat(calling(3.5), calling(35), calling(35), "35"), n=4, extract="number")
        answer = voting.invoke("?", {"max_concurrency": 1})
        assert answer.tool_calls[0]["args"] == {"a": 35, "b": 1}
        assert answer.response_metadata["votes"]["share"] == 0.5

    def test_log_probabilities_in_openais_shape(self):
        def reported(text, *logprobs):
            content = [{"token": "ab", "logprob": value} for value in logprobs]
            return AIMessage(text, response_metadata={"logprobs": {"content": content}})

        answers = [reported("long", -1.0, -1.0, -1.0), reported("short", -2.0), reported("none")]
        found = VotingRunnable(llm=fake_chat(*answers), n=3, by="likelihood").invoke("?", {"max_concurrency": 1})
        assert [one["score"] for one in found.response_metadata["votes"]["candidates"]] == [-0.5, -1, None]
        assert found.content == "long"
        tied = VotingRunnable(llm=fake_chat(*answers[1::-1]), n=2).invoke("?", {"max_concurrency": 1})
        assert tied.content == "long", "the likelier of equal ones"

    def test_without_log_probabilities_there_is_no_likelihood(self):
        with pytest.raises(SamplingError, match="by='likelihood' needs the log-probabilities"):
            VotingRunnable(llm=fake_chat("a", "b"), n=2, by="likelihood").invoke("?")


class Runs(BaseCallbackHandler):
    """Remembers which runs were inside of which."""

    def __init__(self):
        self.parents, self.tags = {}, []

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, **_):
        self.parents[run_id] = parent_run_id

    def on_llm_start(self, serialized, prompts, *, run_id, parent_run_id=None, tags=None, **_):
        self.parents[run_id] = parent_run_id
        self.tags.append(tags)

    def on_chat_model_start(self, serialized, messages, **options):
        self.on_llm_start(serialized, messages, **options)


def test_the_models_runs_are_children_of_the_vote(model):
    runs = Runs()
    VotingRunnable(llm=model.with_config(tags=["inner"]), n=2).invoke(PROMPT, {"callbacks": [runs], "tags": ["outer"]})
    outer, inner = runs.parents
    assert runs.parents == {outer: None, inner: outer}
    assert {"inner", "outer"} <= {*runs.tags[0]}


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"by": "luck"}, ValidationError, "majority"),
        ({"n": 0}, ValidationError, "greater than or equal to 1"),
        ({"votes": 3}, ValidationError, "votes"),
        ({"extract": "luck"}, SamplingError, "no group"),
        ({"utility": max}, SamplingError, "A utility is for by='mbr'"),
    ],
)
def test_wrong_options_are_refused_at_construction(options, error, problem):
    with pytest.raises(error, match=problem):
        VotingRunnable(llm=DeepenLLM(models=["/nowhere"]), **options)


def test_equal_answers_are_refused_before_anything_is_loaded():
    with pytest.raises(SamplingError, match="with temperature 0 all 5 answers are equal"):
        VotingRunnable(llm=DeepenLLM(models=["/nowhere"])).invoke("?")
