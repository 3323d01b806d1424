"""Options of ChatDeepen, its cache, and it inside other runnables."""

import copy
import json
import pickle
import random
from typing import Literal

import pytest
import torch
import yaml
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField
from langchain_parts import CORE, WAYS, Recorder, asked, plain
from pydantic import BaseModel
from scheduler_parts import hook
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen_core import __version__
from deepen_core.config import FusionConfig, SamplingParams
from deepen_core.errors import ConfigurationError, SamplingError
from deepen_integrations.langchain import ChatDeepen

PROMPT = "The quick brown fox"


class Answer(BaseModel):
    """An answer."""

    word: Literal["yes", "no"]


def add(a: Literal[1, 2]) -> int:
    """Add one."""
    return a + 1


@pytest.fixture
def chat(ensemble):
    return ChatDeepen.from_ensemble(ensemble)


# Refusals


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", ["temprature", "base_url", "functions", "reasoning_effort"])
async def test_an_unknown_option_of_a_call_is_refused(chat, ensemble, way, option):
    with pytest.raises(SamplingError, match=f"Unknown option '{option}'"):
        await asked(chat, way, "q", **{option: 1})
    assert not ensemble.requests


def test_an_unknown_option_of_a_model_is_refused():
    with pytest.raises(ConfigurationError, match="'temprature': did you mean 'temperature'"):
        ChatDeepen(models=["a"], temprature=1)
    with pytest.raises(ConfigurationError, match="'hf_token'"):
        ChatDeepen(models=["a"], hf_token="secret")
    given = ChatDeepen(models=["a"], max_retries=3, api_key="secret")
    assert "secret" not in repr(given) + json.dumps(plain(given)) + json.dumps(given._serialized)


@pytest.mark.parametrize("tools", [[Answer], [add], [5], 5, [None]])
def test_tools_of_a_call_are_definitions(chat, ensemble, tools):
    with pytest.raises(SamplingError, match=r"is not a tool|tools is 5: give a list"):
        chat.invoke("q", tools=tools)
    assert not ensemble.requests


@pytest.mark.parametrize(
    "options", [{"tools": None}, {"tools": []}, {"tool_choice": "auto"}, {"response_format": None}]
)
def test_what_asks_for_nothing_is_taken(chat, ensemble, options):
    chat.invoke("q", **options)
    assert ensemble.requests[-1] == ([{"role": "user", "content": "q"}], SamplingParams())


# The cache


OPTIONS = [
    {"temperature": 0.5},
    {"max_tokens": 3},
    {"seed": 4},
    {"stop": ["is"]},
    {"logprobs": 1},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"response_format": {"type": "json_object"}},
]


class TestCache:
    """Only the same question with the same options is answered from LangChain's cache."""

    @pytest.fixture
    def chat(self, ensemble):
        return ChatDeepen.from_ensemble(ensemble, cache=InMemoryCache())

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("way", ["call", "bind", "async", "batch"])
    async def test_each_option_has_its_own_answers(self, chat, ensemble, options, way):
        chat.invoke("q")
        for _ in range(2):
            if way == "call":
                chat.invoke("q", **options)
            elif way == "bind":
                chat.bind(**options).invoke("q")
            elif way == "async":
                await chat.ainvoke("q", **options)
            else:
                chat.batch(["q"], **options)
        assert len(ensemble.requests) == 2
        chat.invoke("q")
        assert len(ensemble.requests) == 2

    def test_what_is_assigned_or_copied_has_its_own(self, chat, ensemble):
        chat.invoke("q")
        chat.model_copy(update={"temperature": 0.25}).invoke("q")
        chat.with_options(temperature=0.75).invoke("q")
        chat.temperature = 0.5
        chat.invoke("q")
        assert len(ensemble.requests) == 4
        chat.model_copy().invoke("q")
        assert len(ensemble.requests) == 4

    async def test_a_hit_is_the_same_message(self, chat, ensemble):
        ensemble.answers["q"] = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
        bound = chat.bind_tools([add])
        first = bound.invoke("q", logprobs=1)
        for again in (bound.invoke("q", logprobs=1), await bound.ainvoke("q", logprobs=1)):
            assert again.content == first.content
            assert again.tool_calls == first.tool_calls != []
            assert again.response_metadata == first.response_metadata
            assert {**again.usage_metadata, "total_cost": 0} == {**first.usage_metadata, "total_cost": 0}
        assert len(ensemble.requests) == 1

    def test_conversations_and_ensembles_are_told_apart(self, chat, ensemble):
        for messages in ("q", [("human", "q"), ("ai", "a"), ("human", "q")], [("system", "q")]):
            for _ in range(2):
                chat.invoke(messages)
        assert len(ensemble.requests) == 3
        other = type(ensemble)()
        other.default = " Oslo"
        assert ChatDeepen.from_ensemble(other, cache=chat.cache).invoke("q").text == " Oslo"

    @pytest.mark.parametrize("loading", [{"weights": [1, 2]}, {"main": 1}, {"fusion": "deepen-paper"}], ids=str)
    def test_other_ensembles_have_other_answers(self, loads, loading):
        cache = InMemoryCache()
        for options in ({}, loading, {}, loading):
            ChatDeepen(**{"models": ["a", "b"], "cache": cache, **options}).invoke("q")
        assert sum(len(load.ensemble.requests) for load in loads) == 2

    def test_an_object_from_the_cache(self, terse):
        chat = ChatDeepen.from_ensemble(terse, max_tokens=100, cache=InMemoryCache())
        member = hook(terse)
        structured = chat.with_structured_output(Answer)
        try:
            assert structured.invoke("hi") == structured.invoke("hi")
            forwards = len(member.forwards)
            assert structured.invoke("hi").word in {"yes", "no"}
            assert len(member.forwards) == forwards > 0
        finally:
            terse._engine.decoder._runners.each[0].member = member._member

    @pytest.mark.parametrize(("cache", "times"), [(None, 1), (True, 1), (False, 2)])
    def test_the_global_cache(self, ensemble, cache, times):
        set_llm_cache(InMemoryCache())
        try:
            chat = ChatDeepen.from_ensemble(ensemble, cache=cache)
            assert chat.invoke("q").text == chat.invoke("q").text
        finally:
            set_llm_cache(None)
        assert len(ensemble.requests) == times


# Choosing


async def test_a_seed_is_the_text_and_batches_do_not_matter(pair):
    chat = ChatDeepen.from_ensemble(pair, temperature=1.2, max_new_tokens=12, ignore_eos=True)
    random.seed(5)
    torch.manual_seed(5)
    before = (random.getstate(), torch.get_rng_state().tolist())
    alone = chat.invoke(PROMPT, seed=7).text
    assert chat.batch(["Once", PROMPT, "def mean"], seed=7)[1].text == alone
    for way in WAYS:
        assert (await asked(chat, way, PROMPT, seed=7)).text == alone
    assert len({chat.invoke(PROMPT, seed=seed).text for seed in range(5)}) > 1
    assert before == (random.getstate(), torch.get_rng_state().tolist())


def test_options_reach_the_choice_among_fused_probabilities(pair):
    chat = ChatDeepen.from_ensemble(pair, max_new_tokens=8, ignore_eos=True)
    greedy = chat.invoke(PROMPT).text
    assert chat.invoke(PROMPT, temperature=0, seed=1).text == greedy
    assert chat.invoke(PROMPT, temperature=1.5, top_k=1).text == greedy
    assert chat.invoke(PROMPT, temperature=1.5, top_p=1e-6).text == greedy
    assert len({chat.invoke(PROMPT, temperature=1.5, seed=seed).text for seed in range(5)}) > 1
    assert chat.invoke(PROMPT, repetition_penalty=50.0).text != greedy
    calls = chat.bind_tools([], choices=["yes", "no"], temperature=2.0, ignore_eos=False)
    assert {calls.invoke(PROMPT, seed=seed).text for seed in range(20)} == {"yes", "no"}


# Inside other runnables


def test_configured_fields_need_no_other_ensemble(terse):
    chat = ChatDeepen.from_ensemble(terse, max_new_tokens=60)
    fields = {"temperature": ConfigurableField(id="heat"), "seed": ConfigurableField(id="seed")}
    runnable = chat.configurable_fields(**fields, max_new_tokens=ConfigurableField(id="length"))
    plain = runnable.invoke("hi").text
    assert plain == chat.invoke("hi").text
    assert len(plain) > len(runnable.invoke("hi", {"configurable": {"length": 3}}).text) > 0
    assert len({runnable.invoke("hi", {"configurable": {"heat": 1.5, "seed": n}}).text for n in range(4)}) > 1
    # On a configurable model `bind_tools` of LangChain binds the model as it is by default.
    called = runnable.bind(**chat.bind_tools([add], tool_choice="any").kwargs)
    assert called.invoke("hi", {"configurable": {"length": 300}}).tool_calls[0]["name"] == "add"
    assert called.invoke("hi", {"configurable": {"length": 3}}).tool_calls == []
    assert type(runnable.with_structured_output(Answer).invoke("hi")) is Answer
    other = chat.configurable_alternatives(ConfigurableField(id="which"), short=chat.with_options(max_tokens=2))
    assert len(other.invoke("hi", {"configurable": {"which": "short"}}).text) < len(plain)
    assert chat.ensemble is terse


WRAPPED = {
    "bound": lambda chat: chat.bind_tools([add], tool_choice="any", parallel_tool_calls=False),
    "schema": lambda chat: chat.with_structured_output(Answer.model_json_schema()),
    "class": lambda chat: chat.with_structured_output(Answer),
    "class by call": lambda chat: chat.with_structured_output(Answer, method="function_calling"),
    "beside raw": lambda chat: chat.with_structured_output(Answer, include_raw=True) | _parsed,
}


def _parsed(told):
    return told["parsed"]


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_is_bound_can_be_copied_pickled_and_retried(terse, kind):
    chat = ChatDeepen.from_ensemble(terse, max_tokens=100)
    wrapped = WRAPPED[kind](chat)
    wanted = meaning(wrapped.invoke("hi"))
    assert wanted
    stored = pickle.dumps(wrapped)
    assert len(stored) < 20_000
    for other in (
        pickle.loads(stored),
        copy.deepcopy(wrapped),
        wrapped.with_retry(stop_after_attempt=2),
        wrapped.with_config(tags=["t"]),
        WRAPPED[kind](chat.with_fallbacks([chat])),
        wrapped.with_fallbacks([wrapped]),
    ):
        assert meaning(other.invoke("hi")) == wanted


def meaning(answer):
    """Without what is fresh each time."""
    return answer.tool_calls[0]["args"] if hasattr(answer, "tool_calls") else answer


def test_a_fallback_takes_over(ensemble, terse):
    ensemble.failure = ConfigurationError("broken")
    broken = ChatDeepen.from_ensemble(ensemble)
    answer = broken.with_fallbacks([ChatDeepen.from_ensemble(terse, max_tokens=2)]).invoke("hi")
    assert answer.response_metadata["model_name"] == "brief+wordy"
    assert len(ensemble.requests) == 1
    with pytest.raises(ConfigurationError, match="broken"):
        broken.with_retry(stop_after_attempt=3, wait_exponential_jitter=False).invoke("hi")
    assert len(ensemble.requests) == 4


def test_a_rate_limiter_is_asked(ensemble):
    class Limiter(InMemoryRateLimiter):
        asked = 0

        def acquire(self, *, blocking=True):
            type(self).asked += 1
            return True

    chat = ChatDeepen.from_ensemble(ensemble, rate_limiter=Limiter())
    chat.invoke("q")
    list(chat.stream("q"))
    assert Limiter.asked == 2


def test_binding_again_replaces_what_was_bound(terse):
    bound = ChatDeepen.from_ensemble(terse, max_tokens=100).bind_tools([add], tool_choice="add")
    (call,) = bound.bind_tools([Answer], tool_choice="Answer").invoke("hi").tool_calls
    assert call["name"] == "Answer"


# What is told


@pytest.mark.parametrize(
    "options",
    [
        {"models": ["a", "b"], "weights": [1, 2], "stop": ["x"], "temperature": 0.5},
        {"models": [{"model": "a", "revision": "r", "weight": 0.3}], "fusion": FusionConfig(steps=3), "seed": 3},
        {"models": "demo", "max_tokens": 5},
    ],
)
def test_identifying_params_make_the_same_model(options):
    """Chat models have no `save`."""
    chat = ChatDeepen(**options)
    params = plain(chat)
    assert params.pop("_type") == "deepen-chat"
    for told in (json.loads(json.dumps(params)), yaml.safe_load(yaml.safe_dump(params))):
        assert ChatDeepen(**told)._identifying_params == chat._identifying_params
    assert {*SamplingParams.model_fields} - {*params} == {"stop"}
    assert "dict" not in vars(ChatDeepen)


@pytest.mark.skipif(CORE < (1, 4, 6), reason="this LangChain notes no versions")
def test_versions_are_in_the_metadata(ensemble):
    mine = {"mine": 1}
    chat, recorder = ChatDeepen.from_ensemble(ensemble, metadata=mine), Recorder()
    assert chat.metadata["lc_versions"]["deepen"] == __version__
    assert mine == {"mine": 1}
    chat.invoke("q", {"callbacks": [recorder]})
    assert recorder.starts[0]["metadata"]["lc_versions"]["deepen"] == __version__


# Whose text it is


@torch.inference_mode()
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_one_member_says_what_transformers_says(load, folders, name):
    model = AutoModelForCausalLM.from_pretrained(folders[name])
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    ids = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)["input_ids"]
    model.generation_config.eos_token_id = None
    inputs = torch.tensor([ids])
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    spoken = model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)[0, len(ids) :]
    with load(name) as ensemble:
        answer = ChatDeepen.from_ensemble(ensemble, max_new_tokens=12, ignore_eos=True, logprobs=0).invoke(PROMPT)
        vocabulary = ensemble._engine.members[0].tokenizer.vocabulary
    said = [bytes(entry["bytes"]) for entry in answer.response_metadata["logprobs"]["content"]]
    assert said == [vocabulary.token_bytes(i) or b"" for i in spoken.tolist()]
    assert answer.usage_metadata["input_tokens"] == len(ids)


def test_a_weight_of_zero_is_the_first_member(load):
    with load("alpha") as alone, load("alpha", "beta", weights=[1, 0]) as weighed:
        answers = [
            ChatDeepen.from_ensemble(one, max_new_tokens=12, ignore_eos=True).invoke([HumanMessage(PROMPT)])
            for one in (alone, weighed)
        ]
    assert answers[0].text == answers[1].text
