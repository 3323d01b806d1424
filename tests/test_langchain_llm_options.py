"""Options of DeepenLLM: refusals, cache keys, traces, seeds, copies."""

import json
import random
from itertools import product

import pytest
import torch
import yaml
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.runnables import ConfigurableField
from langchain_parts import CORE, Recorder, plain
from scheduler_parts import hook

from deepen_core.config import FusionConfig, SamplingParams
from deepen_core.errors import ConfigurationError, SamplingError
from deepen_integrations.langchain import DeepenLLM

PROMPT = "The quick brown fox"


async def ask(llm, way, prompt, config=None, **options):
    """Asks once, with options given in one of the ways."""
    if way == "call":
        return llm.invoke(prompt, config, **options)
    if way == "bind":
        return llm.bind(**options).invoke(prompt, config)
    if way == "async":
        return await llm.ainvoke(prompt, config, **options)
    if way == "batch":
        return llm.batch([prompt], config, **options)[0]
    if way == "abatch":
        return (await llm.abatch([prompt], config, **options))[0]
    if way == "init":
        return llm.with_options(**options).invoke(prompt, config)
    if way == "configured":
        fields = {name: ConfigurableField(id=name) for name in options}
        return llm.configurable_fields(**fields).invoke(prompt, {**(config or {}), "configurable": options})
    if way == "stream":
        return "".join(llm.stream(prompt, config, **options))
    assert way == "astream"
    return "".join([piece async for piece in llm.astream(prompt, config, **options)])


WHOLE = ["call", "bind", "async", "batch", "abatch", "init", "configured"]
STREAMS = ["stream", "astream"]


@pytest.fixture
def llm(ensemble):
    return DeepenLLM.from_ensemble(ensemble)


# Refusals


@pytest.mark.parametrize("way", [w for w in WHOLE + STREAMS if w != "configured"])
async def test_an_unknown_option_of_a_call_is_refused(llm, ensemble, way):
    with pytest.raises(SamplingError, match="'temprature': did you mean 'temperature'"):
        await ask(llm, way, "q", temprature=0.5)
    assert not ensemble.requests


@pytest.mark.parametrize("option", ["rate_limiter", "base_url", "streaming", "hf_token"])
def test_options_of_other_models_are_refused(option):
    """BaseLLM has no rate limiter (only chat models have one), and one answer a prompt is all that is decoded."""
    with pytest.raises(ConfigurationError, match=f"Unknown option '{option}'"):
        DeepenLLM(models=["a"], **{option: 1})


def test_what_users_set_for_every_server_is_taken_and_forgotten():
    """LangChain's own tests pass these to any model; here is no server to retry and no key."""
    llm = DeepenLLM(models=["a"], max_retries=3, api_key="secret", timeout=9)
    assert llm.timeout == 9
    assert "secret" not in repr(llm) + str(llm) + json.dumps(plain(llm)) + json.dumps(llm._serialized)


# The cache


OPTIONS = {
    "temperature": 0.5,
    "max_tokens": 3,
    "max_new_tokens": 2,
    "seed": 4,
    "stop": ["is"],
    "top_p": 0.5,
    "logprobs": 1,
    "timeout": 9.0,
}


# `max_tokens` is another name of a field and no field, so LangChain cannot configure it.
@pytest.mark.parametrize(
    ("way", "option"), [pair for pair in product(WHOLE, OPTIONS) if pair != ("configured", "max_tokens")]
)
async def test_each_option_has_its_own_answers(llm, ensemble, way, option):
    llm.cache = InMemoryCache()
    llm.invoke("q")
    for _ in range(2):
        await ask(llm, way, "q", **{option: OPTIONS[option]})
    assert len(ensemble.requests) == 2
    llm.invoke("q")
    assert len(ensemble.requests) == 2


async def test_the_same_options_given_differently_share_an_answer(llm, ensemble):
    llm.cache = InMemoryCache()
    for way in WHOLE:
        await ask(llm, way, "q", temperature=0.5)
    assert len(ensemble.requests) == 1


def test_assigned_options_too(llm, ensemble):
    llm.cache = InMemoryCache()
    llm.invoke("q")
    llm.temperature = 0.5
    llm.invoke("q")
    assert len(ensemble.requests) == 2


@pytest.mark.parametrize(("cache", "asked"), [(None, 1), (True, 1), (False, 2)])
def test_the_global_cache(ensemble, cache, asked):
    set_llm_cache(InMemoryCache())
    try:
        llm = DeepenLLM.from_ensemble(ensemble, cache=cache)
        assert llm.invoke("q") == llm.invoke("q")
    finally:
        set_llm_cache(None)
    assert len(ensemble.requests) == asked


@pytest.mark.parametrize(
    "loading",
    [
        {"weights": [1, 2]},
        {"main": 1},
        {"fusion": "deepen-paper"},
        {"dtype": "bfloat16"},
        {"models": [{"model": "a", "revision": "x"}, "b"]},
        {"apply_chat_template": False},
    ],
    ids=str,
)
def test_other_ensembles_have_other_answers(loads, loading):
    cache = InMemoryCache()
    for options in ({}, loading, {}, loading):
        DeepenLLM(**{"models": ["a", "b"], "cache": cache, **options}).invoke("q")
    assert sum(len(load.ensemble.requests) for load in loads) == 2


# Traces


@pytest.mark.parametrize("way", WHOLE + STREAMS)
async def test_traces_show_the_options_of_the_call(llm, way):
    recorder = Recorder()
    options = {"temperature": 0.5, "max_new_tokens": 3}
    await ask(llm, way, "q", {"callbacks": [recorder], "metadata": {"mine": 1}}, **options)
    (start,) = recorder.starts
    assert {name: start["invocation_params"][name] for name in options} == options
    assert start["metadata"]["mine"] == 1
    told = {name: value for name, value in start["metadata"].items() if name.startswith("ls_")}
    assert {name: told[name] for name in ("ls_provider", "ls_model_type", "ls_model_name")} == {
        "ls_provider": "deepen",
        "ls_model_type": "llm",
        "ls_model_name": "alpha+beta",
    }
    assert (told["ls_temperature"], told["ls_max_tokens"]) == (0.5, 3)
    assert '"temperature": 0.5' in json.dumps(start["serialized"])


@pytest.mark.parametrize("way", ["call", "async", "stream", "astream"])
async def test_traces_show_the_stop_strings(ensemble, way):
    for own, given, shown in (
        (["x"], {}, ["x"]),
        (["x"], {"stop": ["y"]}, ["y"]),
        ([], {}, None),
        (["x"], {"stop": []}, None),
    ):
        recorder = Recorder()
        llm = DeepenLLM.from_ensemble(ensemble, stop=own)
        await ask(llm, way, "q", {"callbacks": [recorder], "metadata": {}}, **given)
        assert recorder.starts[0]["metadata"].get("ls_stop") == shown
        assert llm._get_ls_params(**given).get("ls_stop") == shown


# Choosing


def test_a_seed_is_the_text_and_batches_do_not_matter(pair):
    llm = DeepenLLM.from_ensemble(pair, temperature=1.2, max_new_tokens=12, ignore_eos=True)
    random.seed(5)
    torch.manual_seed(5)
    before = (random.getstate(), torch.get_rng_state().tolist())
    alone = llm.invoke(PROMPT, seed=7)
    assert llm.batch(["Once", PROMPT, "def mean"], seed=7)[1] == alone
    assert "".join(llm.stream(PROMPT, seed=7)) == alone
    assert len({llm.invoke(PROMPT, seed=seed) for seed in range(5)}) > 1
    assert before == (random.getstate(), torch.get_rng_state().tolist())


def test_options_reach_the_choice_among_fused_probabilities(pair):
    llm = DeepenLLM.from_ensemble(pair, max_new_tokens=8, ignore_eos=True)
    greedy = llm.invoke(PROMPT)
    assert llm.invoke(PROMPT, temperature=0, seed=1) == llm.invoke(PROMPT, temperature=0, seed=2) == greedy
    assert llm.invoke(PROMPT, temperature=1.5, top_k=1) == greedy
    assert llm.invoke(PROMPT, temperature=1.5, top_p=1e-6) == greedy
    assert len({llm.invoke(PROMPT, temperature=1.5, seed=seed) for seed in range(5)}) > 1
    for entry in llm.generate([PROMPT], logprobs=5).generations[0][0].generation_info["logprobs"]["content"]:
        assert entry["logprob"] == max(top["logprob"] for top in entry["top_logprobs"])
    assert llm.invoke(PROMPT, repetition_penalty=50.0) != greedy


# Copies and saving


def test_configured_fields_load_no_other_model(load):
    with load("alpha", "beta") as ensemble:
        member = hook(ensemble)
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=4, ignore_eos=True)
        runnable = llm.configurable_fields(
            temperature=ConfigurableField(id="heat"),
            stop=ConfigurableField(id="stop"),
            seed=ConfigurableField(id="seed"),
        )
        plain = runnable.invoke(PROMPT)
        hot = {runnable.invoke(PROMPT, {"configurable": {"heat": 1.5, "seed": n}}) for n in range(4)}
        cut = runnable.invoke(PROMPT, {"configurable": {"stop": [plain[1]]}})
        with_config = llm.bind(max_tokens=2).with_config(tags=["t"]).invoke(PROMPT)
    assert llm.ensemble is ensemble
    assert member.forwards
    assert len(hot) > 1
    assert cut == plain[: plain.index(plain[1])]
    assert plain.startswith(with_config)
    assert len(with_config) < len(plain)


@pytest.mark.parametrize(
    "options",
    [
        {"models": ["a", "b"], "weights": [1, 2], "stop": ["x"], "temperature": 0.5, "apply_chat_template": False},
        {"models": [{"model": "a", "revision": "r", "weight": 0.3}], "fusion": FusionConfig(steps=3), "seed": 3},
        {"models": "demo", "max_tokens": 5},
    ],
)
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_what_was_saved_makes_the_same_model(options, suffix, tmp_path):
    llm = DeepenLLM(**options)
    file = tmp_path / f"llm.{suffix}"
    llm.save(file)
    saved = (json.loads if suffix == "json" else yaml.safe_load)(file.read_text(encoding="utf-8"))
    assert saved.pop("_type") == "deepen"
    again = DeepenLLM(**saved)
    assert again._identifying_params == llm._identifying_params
    assert again.loading() == llm.loading()
    assert {**saved, "_type": "deepen"} == json.loads(json.dumps(plain(llm)))
    assert "dict" not in vars(DeepenLLM)


def test_identifying_params_hold_every_option():
    names = {*DeepenLLM(models=["a"])._identifying_params}
    assert {*SamplingParams.model_fields} - names == {"stop"}
    assert "default_stop" in names
    with pytest.raises(ConfigurationError, match="stop or default_stop"):
        DeepenLLM(models=["a"], stop=["x"], default_stop=["y"])


@pytest.mark.skipif(CORE < (1, 4, 6), reason="this LangChain notes no versions")
def test_versions_are_in_the_metadata(ensemble):
    from deepen_core import __version__

    mine = {"mine": 1}
    llm = DeepenLLM.from_ensemble(ensemble, metadata=mine)
    assert llm.metadata["lc_versions"]["deepen"] == __version__
    assert {"langchain-core", "deepen"} <= llm.metadata["lc_versions"].keys()
    assert llm.metadata["mine"] == 1
    assert mine == {"mine": 1}
    recorder = Recorder()
    llm.invoke("q", {"callbacks": [recorder]})
    assert recorder.starts[0]["metadata"]["lc_versions"]["deepen"] == __version__
