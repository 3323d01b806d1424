"""One ensemble in a process for equal options of the adapters: loaded once, and let go with its last holder."""

import copy
import gc
import pickle
import random
import threading
import time

import pytest
import torch
from fixtures_adapters import ask

from deepen_core.config import FusionConfig, MemberConfig
from deepen_core.errors import ClosedError, ConfigurationError, ModelFilesError
from deepen_integrations import adapter as adapter_module
from deepen_integrations import shared_ensembles
from deepen_integrations.langchain import DeepenLLM as LangChainLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM
from deepen_integrations.load_options import LoadOptions


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
    given = {"main": "b", "weights": (1.0, 3.0), "dtype": "float32", "max_batch_size": 8, "max_waiting": 5}
    assert adapter(models=["a", "b"], progress=False, **given).ensemble
    assert calls.pop() == (
        [MemberConfig(model="a"), MemberConfig(model="b")],
        {**given, "fusion": "deepen", "chat": False, "progress": False},
    )
    assert adapter.demo(fusion="deepen-paper").ensemble
    own = {"main": 0, "fusion": "deepen-paper", "dtype": "auto", "max_batch_size": 32, "max_waiting": 10_000}
    assert calls.pop() == ("demo", own)


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
