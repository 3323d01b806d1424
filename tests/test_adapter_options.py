"""Options of both adapters: at construction, in calls, by assignment, and under other models' names."""

import importlib
import pickle
import re
import sys

import pytest
from adapter_parts import check_constructing
from fixtures_adapters import ADAPTERS, ask
from transformers import AutoTokenizer

from deepen_core.config import SamplingParams
from deepen_core.errors import ConfigurationError, SamplingError
from deepen_integrations import option_names


@pytest.mark.parametrize("framework", ADAPTERS)
def test_constructing_a_thousand_loads_nothing(framework):
    check_constructing(framework, "DeepenLLM", temperature=0.5, stop=["x"])


@pytest.mark.parametrize(
    ("framework", "module", "extra"),
    [("langchain", "langchain_core", "langchain"), ("llama_index", "llama_index.core", "llama-index")],
)
def test_a_missing_framework_is_told_by_its_extra(framework, module, extra, monkeypatch):
    for name in [n for n in sys.modules if n.startswith(f"deepen_integrations.{framework}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "deepen-integrations\[{extra}\]"'):
        importlib.import_module(f"deepen_integrations.{framework}")


@pytest.mark.parametrize("framework", ADAPTERS)
def test_all_is_sorted_and_there(framework):
    module = importlib.import_module(f"deepen_integrations.{framework}")
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_every_sampling_option_is_a_field_with_the_engines_default(adapter):
    llm = adapter(models=["a"])
    assert llm.sampling({}) == SamplingParams()
    assert {name: getattr(llm, name) for name in SamplingParams.model_fields} == dict(SamplingParams())


def test_variables_of_chat_templates_are_options_of_adapter_and_call(adapter):
    llm = adapter(models=["a"], enable_thinking=False, chat_template_kwargs={"reasoning_effort": "low"})
    assert llm.chat_template_kwargs == {"reasoning_effort": "low", "enable_thinking": False}
    assert llm.sampling({"enable_thinking": True}).chat_template_kwargs["enable_thinking"] is True
    assert llm.sampling({"chat_template_kwargs": {"a": 1}}).chat_template_kwargs == {"a": 1}
    assert pickle.loads(pickle.dumps(llm)).chat_template_kwargs == llm.chat_template_kwargs
    with pytest.raises(ConfigurationError, match="messages: set by the engine"):
        adapter(models=["a"], chat_template_kwargs={"messages": []})


def test_rendered_text_is_read_as_a_template_means_it(adapter, pair, folders):
    text = AutoTokenizer.from_pretrained(folders["alpha"]).apply_chat_template(
        [{"role": "user", "content": "Where?"}], tokenize=False, add_generation_prompt=True
    )
    expected = pair.generate(text, max_new_tokens=8, control_tokens=True).text
    assert expected != pair.generate(text, max_new_tokens=8).text
    own = adapter.from_ensemble(pair, max_tokens=8, control_tokens=True)
    assert ask(own, text) == ask(adapter.from_ensemble(pair, max_tokens=8), text, control_tokens=True) == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"models": ["a"], "temprature": 1}, "Unknown option 'temprature': did you mean 'temperature'"),
        ({"models": ["a"], "temperature": -1}, "temperature.* is -1"),
        ({"models": ["a"], "stop": ["x", ""]}, "empty stop string"),
        ({"models": ["a"], "max_tokens": 1, "max_new_tokens": 1}, "not both"),
        ({"models": ["a"], "fusion": "deepn"}, "Unknown fusion 'deepn'"),
        ({"models": ["a", "b"], "weights": [1]}, "1 weights for 2 members"),
        ({"models": ["a", "b"], "weights": [1, "x"]}, "one number per member"),
        ({"models": ["a", "b"], "weights": "uncertainty"}, "one number per member"),
        ({"models": "demo", "weights": "uncertainty"}, "one number per member"),
        ({"models": "demo", "weights": [1, 2, 3]}, "3 weights for 2 members"),
        ({"models": [{"model": "a", "wait": 1}]}, "Unknown option 'wait': did you mean 'weight'"),
        ({"models": [3]}, "3 is not a member"),
        ({"models": "a"}, r"give a list of members such as \['a', 'another'\]"),
        ({"models": []}, "at least one member"),
        ({}, "at least one member"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(adapter, options, told):
    with pytest.raises(ConfigurationError, match=told):
        adapter(**options)


def test_a_wrong_option_of_a_call_is_refused_before_loading(adapter, loads):
    llm = adapter(models=["a"])
    with pytest.raises(SamplingError, match="'temprature': did you mean 'temperature'"):
        ask(llm, temprature=1)
    with pytest.raises(SamplingError, match=r"top_p.* is 2"):
        ask(llm, top_p=2)
    assert not loads


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("models", "'models', by which"),
        ("fusion", "'fusion', by which"),
        ("num_ctx", r"'num_ctx' \('max_context_window' here\), by which"),
    ],
)
def test_a_call_cannot_change_by_what_the_models_are_loaded(adapter, loads, name, told):
    llm = adapter(models=["a"])
    again = f"the models are loaded: construct another {adapter.__name__} with it"
    with pytest.raises(SamplingError, match=f"^A call cannot change {told} {again}"):
        ask(llm, **{name: "product"})
    assert not loads


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("temperature", -1, "'temperature' is -1"),
        ("max_tokens", 0, "'max_new_tokens' is 0"),
        ("stop", [""], "empty stop string"),
        ("choices", ["a"], "Json_schema and choices are given"),
        ("max_batch_size", 0, "'max_batch_size' is 0"),
        ("fusion", "deepn", "deepn"),
        ("weights", [1, 2, 3], "3 weights for 2 members"),
    ],
)
def test_assignments_and_copies_are_validated_as_construction_is(adapter, name, value, told):
    llm = adapter(models=["a", "b"], temperature=0.5, json_schema={"type": "object"})
    before = llm.sampling({}), llm.loading()
    with pytest.raises(ConfigurationError, match=told):
        setattr(llm, name, value)
    with pytest.raises(ConfigurationError, match=told):
        llm.model_copy(update={name: value})
    assert (llm.sampling({}), llm.loading()) == before


def test_assigned_values_are_those_of_the_next_call(adapter, ensemble):
    llm = adapter.from_ensemble(ensemble, temperature=0.5)
    llm.max_tokens, llm.stop, llm.seed = 2, "x", 3
    ask(llm)
    params = ensemble.requests[-1][1]
    assert (params.max_new_tokens, params.stop, params.seed, params.temperature) == (2, ("x",), 3, 0.5)
    llm.max_tokens = llm.stop = llm.seed = llm.temperature = None
    assert llm.sampling({}) == SamplingParams()
    assert llm.sampling({}).model_fields_set == set()


def test_max_tokens_is_as_good_a_name_as_max_new_tokens(adapter):
    llm = adapter(models=["a"], max_tokens=64)
    for other in (
        llm.model_copy(update={"max_tokens": 3}),
        llm.model_copy(update={"max_new_tokens": 3}),
        llm.with_options(max_tokens=3),
        adapter(models=["a"], max_completion_tokens=3),
    ):
        assert (other.max_tokens, other.max_new_tokens, llm.max_tokens) == (3, 3, 64)
    with pytest.raises(SamplingError, match=r"^Give max_new_tokens or num_predict, not both: they are names of one"):
        adapter(models=["a"], num_predict=3, max_new_tokens=3)


@pytest.mark.parametrize("name", [*SamplingParams.model_fields, "max_tokens", "enable_thinking", "top_logprobs"])
def test_none_is_not_given(adapter, ensemble, name):
    llm = adapter.from_ensemble(ensemble, **{name: None})
    assert llm.sampling({}).model_fields_set == set()
    own = {"max_new_tokens": 7, "temperature": 0.5, "logprobs": 1, "seed": 3, "timeout": 9, "stop": ["x"]}
    llm = adapter.from_ensemble(ensemble, **own, regex="a")
    assert llm.sampling({name: None}) == llm.sampling({})


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"num_predict": 5}, {"max_new_tokens": 5}),
        ({"stop_sequences": ["x"]}, {"stop": ("x",)}),
        ({"repeat_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"request_timeout": 5}, {"timeout": 5}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": False}, {"logprobs": None}),
        ({"logprobs": 2}, {"logprobs": 2}),
        ({"repeat_last_n": 64}, {"penalty_window": 64}),
        ({"repeat_last_n": -1}, {}),
        ({"n": 1}, {}),
    ],
)
def test_options_of_other_models_are_translated(adapter, given, known):
    llm = adapter(models=["a"])
    assert llm.sampling(given) == adapter(models=["a"], **given).sampling({}) == SamplingParams(**known)
    assert adapter(models=["a"], logprobs=4).sampling({"logprobs": False}).logprobs is None


def test_options_without_effect_are_reported_once(adapter, ensemble, caplog, monkeypatch):
    monkeypatch.setattr(option_names, "_reported", set())
    harmless = {"user": "me", "stream_usage": True, "service_tier": "auto", "max_retries": 3, "api_key": "secret"}
    for _ in range(2):
        llm = adapter.from_ensemble(ensemble, **harmless)
        ask(llm, **harmless)
    assert sorted(record.args[0] for record in caplog.records) == sorted(harmless)
    assert "'max_retries' has no effect: a local model is not retried, because" in caplog.text
    assert "secret" not in repr(llm) + caplog.text


def test_one_model_is_an_ensemble_of_one(adapter, ensemble):
    assert adapter(model="a").loading() == adapter(models=["a"]).loading()
    assert adapter(model="demo").loading() == adapter.demo().loading()
    assert adapter(model=["a", "b"]).loading() == adapter(models=["a", "b"]).loading()
    with pytest.raises(ConfigurationError, match="Give either models, or model for a single one"):
        adapter(model="a", models=["a"])
    llm = adapter.from_ensemble(ensemble)
    assert ask(llm, model=llm.model_name) == ask(llm)
    with pytest.raises(SamplingError, match=r"cannot choose another model than 'alpha\+beta': construct another"):
        ask(llm, model="gpt-4")


def test_several_faults_are_lines_and_unknown_names_come_alone(adapter):
    with pytest.raises(ConfigurationError) as caught:
        adapter(models=["a"], temperature=-1, top_p=7)
    assert re.fullmatch(
        r"2 options are wrong:\n- Option 'temperature' is -1: [^\n]*\n- Option 'top_p' is 7: [^\n]*", str(caught.value)
    )
    with pytest.raises(ConfigurationError) as caught:
        adapter(model_folder="x")
    assert str(caught.value).startswith("Unknown option 'model_folder': known are ")
    assert "\n" not in str(caught.value)


def test_only_options_that_were_given_reach_the_engine_as_given(adapter, ensemble):
    ask(adapter.from_ensemble(ensemble, max_tokens=7), seed=3)
    params = ensemble.requests[-1][1]
    assert params.model_fields_set == {"max_new_tokens", "seed"}
    assert (params.max_new_tokens, params.seed) == (7, 3)


def test_max_tokens_is_max_new_tokens(adapter, ensemble):
    llm = adapter.from_ensemble(ensemble, max_tokens=2)
    assert (llm.max_new_tokens, llm.max_tokens) == (2, 2)
    assert ask(llm) == " The answer"
    assert ask(llm, max_tokens=3) == " The answer is"
    assert ask(llm, max_new_tokens=1) == " The"


def test_a_calls_stop_replaces_the_models(adapter, ensemble):
    llm = adapter.from_ensemble(ensemble, stop=[" is"])
    assert ask(llm) == " The answer"
    assert ask(llm, stop=None) == " The answer"
    assert ask(llm, stop=["bon"]) == " The answer is Lis"
    assert ask(llm, stop=[]) == " The answer is Lisbon."
    assert llm.stop == (" is",)


def test_with_options_is_a_copy_on_the_same_ensemble(adapter, ensemble):
    llm = adapter.from_ensemble(ensemble, seed=1)
    short = llm.with_options(max_tokens=1)
    assert ask(short) == " The"
    assert ask(llm) == " The answer is Lisbon."
    assert short.seed == 1
    assert short.ensemble is llm.ensemble is ensemble
