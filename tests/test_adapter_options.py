"""What both adapters share: options, one ensemble per process, lazy loading and letting go."""

import copy
import gc
import importlib
import json
import pickle
import random
import re
import sys
import threading
import time

import pytest
import torch
from adapter_parts import check_constructing
from transformers import AutoTokenizer

from deepen_core.config import FusionConfig, MemberConfig, SamplingParams
from deepen_core.errors import ClosedError, ConfigurationError, ModelFilesError, SamplingError
from deepen_integrations import adapter as adapter_module
from deepen_integrations import option_names, shared_ensembles
from deepen_integrations.langchain import DeepenLLM as LangChainLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM
from deepen_integrations.load_options import LoadOptions

ADAPTERS = {"langchain": LangChainLLM, "llama_index": LlamaIndexLLM}


@pytest.fixture(params=ADAPTERS)
def adapter(request):
    return ADAPTERS[request.param]


def ask(llm, prompt="Where?", **options):
    return llm.invoke(prompt, **options) if isinstance(llm, LangChainLLM) else llm.complete(prompt, **options).text


# Constructing


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
    with pytest.raises(SamplingError, match="Unknown option 'models'"):
        ask(llm, models=["b"])
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


def test_several_answers_are_refused(adapter):
    with pytest.raises(SamplingError, match=r"n is 3: one answer is given. Ask as often, each time with another seed"):
        adapter(models=["a"]).sampling({"n": 3})


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


# One ensemble for equal options


def test_equal_options_load_once_also_from_many_threads(adapter, loads, monkeypatch):
    load = shared_ensembles._load

    def slowly(*arguments):
        time.sleep(0.05)
        return load(*arguments)

    monkeypatch.setattr(shared_ensembles, "_load", slowly)
    llms = [adapter(models=["a", "b"], temperature=i / 10) for i in range(8)]
    threads = [threading.Thread(target=ask, args=(llm,)) for llm in llms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(llm.ensemble) for llm in llms}) == 1


def test_both_frameworks_share_one_ensemble(loads):
    chain = LangChainLLM(models=["a", "b"], fusion="deepen")
    index = LlamaIndexLLM(models=(MemberConfig(model="a"), {"model": "b"}), fusion=FusionConfig(), temperature=1)
    assert chain.ensemble is index.ensemble
    assert len(loads) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"models": ["b", "a"]},
        {"main": 1},
        {"weights": [0.9, 0.1]},
        {"fusion": "deepen-paper"},
        {"device": "cpu"},
        {"dtype": "float32"},
        {"models": ["a", {"model": "b", "revision": "v2"}]},
    ],
)
def test_other_loading_options_are_another_ensemble(adapter, loads, other):
    options = {"models": ["a", "b"]}
    first, second = adapter(**options), adapter(**{**options, **other})
    assert first.ensemble is not second.ensemble
    assert len(loads) == 2


def test_the_engine_gets_what_was_given(adapter, monkeypatch):
    import deepen_core

    calls = []

    class Spy:
        @classmethod
        def load(cls, models, **options):
            calls.append((models, options))
            return cls()

        @classmethod
        def demo(cls, **options):
            calls.append(("demo", options))
            return cls()

        def close(self):
            pass

    monkeypatch.setattr(deepen_core, "Ensemble", Spy, raising=False)
    given = {"main": "b", "weights": (1.0, 3.0), "dtype": "float32", "max_batch_size": 8}
    assert adapter(models=["a", "b"], progress=False, **given).ensemble
    assert calls.pop() == (
        [MemberConfig(model="a"), MemberConfig(model="b")],
        {**given, "fusion": "deepen", "chat": False, "progress": False},
    )
    assert adapter.demo(fusion="deepen-paper").ensemble
    assert calls.pop() == ("demo", {"main": 0, "fusion": "deepen-paper", "dtype": "auto", "max_batch_size": 32})


def test_a_failed_load_is_tried_again(adapter, loads, monkeypatch):
    load, failures = shared_ensembles._load, [ModelFilesError("no weights")]

    def failing(*arguments):
        if failures:
            raise failures.pop()
        return load(*arguments)

    monkeypatch.setattr(shared_ensembles, "_load", failing)
    llm = adapter(models=["a"])
    with pytest.raises(ModelFilesError, match="no weights"):
        ask(llm)
    assert ask(llm) == " The answer is Lisbon."


def test_models_are_released_with_their_last_holder(adapter, loads):
    first, second = adapter(models=["a"]), adapter(models=["a"])
    assert ask(first) == ask(second)
    held = loads[0].ensemble
    first.close()
    assert not held.closed
    assert ask(second) == " The answer is Lisbon."
    with second:
        pass
    assert held.closed
    with pytest.raises(ClosedError, match="DeepenLLM was closed"):
        ask(second)


def test_models_are_released_when_adapters_are_garbage(adapter, loads):
    llm = adapter(models=["a"])
    copies = [llm.model_copy(), copy.deepcopy(llm)]
    assert ask(llm)
    del llm
    gc.collect()
    assert not loads[0].ensemble.closed
    copies.clear()
    gc.collect()
    assert loads[0].ensemble.closed
    assert not [options for options in shared_ensembles._ensembles if options == loads[0].options]


def test_a_given_ensemble_stays_its_owners(adapter, ensemble):
    with adapter.from_ensemble(ensemble, max_new_tokens=1) as llm:
        assert ask(llm) == " The"
        assert llm.model_name == "alpha+beta"
    assert not ensemble.closed
    with pytest.raises(ConfigurationError, match="fusion, main: fixed by the loaded ensemble"):
        adapter.from_ensemble(ensemble, main=1, fusion="deepen")


def test_an_ensemble_of_another_process_is_told(adapter):
    with pytest.raises(ConfigurationError, match="call from_ensemble again"):
        ask(adapter(models="loaded:0123"))


def test_changing_a_loading_option_changes_the_ensemble(adapter, loads):
    llm = adapter(models=["a", "b"])
    before = llm.ensemble
    llm.main = 1
    assert llm.ensemble is not before
    assert before.closed


@pytest.mark.parametrize(
    "change",
    [
        lambda llm: setattr(llm, "weights", [3, 1]),
        lambda llm: llm.model_copy(update={"models": ["b", "a"]}),
        lambda llm: llm.model_copy(update={"fusion": "product"}),
    ],
)
def test_load_options_are_validated_once_per_change(adapter, loads, monkeypatch, change):
    validated = []

    def counting(**options):
        validated.append(options)
        return LoadOptions(**options)

    counting.model_fields = LoadOptions.model_fields
    llm = adapter(models=["a", "b"], weights=[1, 3])
    monkeypatch.setattr(adapter_module, "LoadOptions", counting)
    changed = change(copied := llm.model_copy()) or copied
    for one in (llm, copy.deepcopy(llm), llm.with_options(seed=1)):
        assert one.ensemble is llm.ensemble
        assert (one.model_name, one.facts.main_window) == ("alpha+beta", 512)
        assert one.loading().weights == (1.0, 3.0)
    assert len(validated) <= 2  # the change; and a deep copy's values are equal and not the same
    validated.clear()
    for _ in range(3):
        assert changed.loading() != llm.loading()
        assert changed.ensemble is not llm.ensemble
        assert ask(changed) == " The answer is Lisbon."
    assert len(validated) <= 2  # `loading` only looks
    assert len(loads) == 2


def test_rebuilding_from_fields_finds_the_same_ensemble(adapter, ensemble):
    """As LangChain's configurable_fields does for every call."""
    llm = adapter.from_ensemble(ensemble)
    again = adapter(models=llm.models, temperature=0.3)
    assert again.ensemble is ensemble


def test_pickle_holds_options_only_and_finds_the_ensemble(adapter, loads):
    llm = adapter(models=["a", "b"], weights=[1, 2], stop=["x"])
    assert ask(llm)
    stored = pickle.dumps(llm)
    assert len(stored) < 10_000
    again = pickle.loads(stored)
    assert again.loading() == llm.loading()
    assert again.sampling({}) == llm.sampling({})
    assert again.ensemble is llm.ensemble
    assert len(loads) == 1


def test_nothing_in_the_process_is_changed(adapter, ensemble):
    random.seed(5)
    torch.manual_seed(5)
    before = (random.getstate(), torch.get_rng_state().tolist(), threading.active_count())
    ask(adapter.from_ensemble(ensemble, temperature=1.0, seed=3), seed=4)
    assert before == (random.getstate(), torch.get_rng_state().tolist(), threading.active_count())


def test_what_is_shown_is_short_and_holds_no_weights(adapter, ensemble):
    llm = adapter.from_ensemble(ensemble)
    assert len(repr(llm)) < 2000
    assert "RuleEnsemble" not in repr(llm) + str(llm)


# What is known before loading


def member(folder, config, **tokenizer):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def test_mains_window_and_templates_are_read_from_files(adapter, loads, tmp_path):
    small = member(tmp_path / "small", {"n_positions": 300}, chat_template="{{ messages }}")
    large = member(tmp_path / "large", {"text_config": {"max_position_embeddings": 4096}}, model_max_length=99)
    llm = adapter(models=[large, small])
    facts = llm.facts
    assert (facts.main_window, facts.has_chat_template, facts.without_template) == (4096, False, ("large",))
    assert adapter(models=[large, small], max_context_window=500).facts.main_window == 500
    capped = [MemberConfig(model=str(large), name="one", weight=0, context_window=700), MemberConfig(model=str(small))]
    assert adapter(models=capped, main="one").facts.main_window == 700
    talking = adapter(models=capped, main=-1).facts  # the other does not take part
    assert (talking.main_window, talking.has_chat_template, talking.without_template) == (300, True, ())
    (large / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert adapter(models=[small, large], main=1).facts.has_chat_template
    assert llm.model_name == "large+small"
    assert not loads
    assert ask(llm)
    assert (llm.facts.main_window, llm.facts.has_chat_template) == (512, False)


@pytest.mark.parametrize(
    ("config", "window"),
    [({"model_type": "gpt2"}, 1024), ({"model_type": "mamba"}, 77), ({"model_type": "nonsense"}, 77)],
)
def test_a_window_that_config_json_does_not_declare(adapter, tmp_path, config, window):
    folder = member(tmp_path / "one", config, model_max_length=77)
    assert adapter(models=[folder]).facts.main_window == window


@pytest.mark.parametrize("model", ["nobody/never-downloaded", "/no/such/folder", "not a hub id!"])
def test_unknown_members_have_no_facts(adapter, model):
    facts = adapter(models=[model]).facts
    assert (facts.main_window, facts.has_chat_template, facts.without_template) == (None, False, ())


def test_a_missing_folder_has_no_budget(adapter):
    with pytest.raises(ModelFilesError, match="There is no folder /no/such/folder"):
        _ = adapter(models=["/no/such/folder"]).budget


def test_damaged_files_have_no_facts(adapter, tmp_path):
    folder = member(tmp_path / "broken", [1, 2])
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    facts = adapter(models=[folder]).facts
    assert (facts.main_window, facts.without_template) == (None, ())
