"""How LangChain's models are made, shared, copied, shown and let go of."""

import ast
import copy
import json
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from adapter_parts import ENDINGS, check_constructing, check_the_last_frees
from langchain_core.load import dumpd, dumps, loads
from langchain_parts import MODELS, Recorder, said
from resident import STATM

from deepen_core.config import FusionConfig, MemberConfig, TranslateConfig, UnionConfig
from deepen_integrations import shared_ensembles
from deepen_integrations.langchain import ChatDeepen, DeepenLLM

PROMPT = "The quick brown fox"


@pytest.fixture(params=MODELS)
def kind(request):
    """Of model."""
    return request.param


@pytest.fixture
def options(folders):
    return {
        "models": [folders["alpha"], folders["beta"]],
        "device": "cpu",
        "progress": False,
        "max_new_tokens": 4,
        "ignore_eos": True,
    }


def test_importing_is_light_and_opens_no_socket():
    """That a missing extra is told by its name is among the tests of packaging."""
    code = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("a socket was opened")
socket.socket.__init__ = refuse
import langchain_core.language_models.base
brought = set(sys.modules)  # LangChain before 1.6 imports transformers itself
import deepen_integrations.langchain as langchain
langchain.DeepenLLM(models=["no/such", "folder"])
assert not {"torch", "transformers", "tokenizers", "huggingface_hub"} & set(sys.modules) - brought
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["DeepenLLM", "ChatDeepen"])
def test_constructing_reads_nothing_and_takes_few_calls(kind):
    check_constructing("langchain", kind)


def test_the_first_call_loads_once_from_many_threads(options, kind, monkeypatch):
    loaded, load = [], shared_ensembles._load

    def spy(*arguments):
        loaded.append(load(*arguments))
        return loaded[-1]

    monkeypatch.setattr(shared_ensembles, "_load", spy)
    llms = [kind(**options, temperature=n / 10) for n in range(6)]
    assert not loaded
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda llm: said(llm.invoke(PROMPT)), llms))
    assert len(loaded) == 1
    for llm in llms:
        llm.close()


@ENDINGS
def test_two_share_one_ensemble_and_the_last_frees_it(options, kind, ending):
    check_the_last_frees([kind(**options), kind(**options, seed=1)], lambda llm: said(llm.invoke(PROMPT)), ending)


def test_pickles_hold_no_weights_and_work(options, kind):
    with kind(**options, stop=["\0"]) as llm:
        text = said(llm.invoke(PROMPT))
        stored = pickle.dumps(llm)
        assert len(stored) < 10_000
        again = pickle.loads(stored)
        assert said(again.invoke(PROMPT)) == text
        assert again.ensemble is llm.ensemble
        assert again._identifying_params == llm._identifying_params


@pytest.mark.slow
def test_a_pickle_loads_in_a_process_that_never_saw_the_models(options, kind, tmp_path):
    stored = tmp_path / "llm.pickle"
    with kind(**options) as llm:
        text = said(llm.invoke(PROMPT))
        stored.write_bytes(pickle.dumps(llm))
    code = f"""
import pickle, pathlib
llm = pickle.loads(pathlib.Path({str(stored)!r}).read_bytes())
answer = llm.invoke({PROMPT!r})
print(repr(answer if isinstance(answer, str) else str(answer.text)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == repr(text), run.stderr


def test_copies_share_the_ensemble(options, kind):
    with kind(**options) as llm:
        text = said(llm.invoke(PROMPT))
        for other in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy(), llm.model_copy(update={"seed": 3})):
            assert other.ensemble is llm.ensemble
            assert said(other.invoke(PROMPT)) == text
            assert other._shared is llm._shared


def test_what_is_shown_is_small_and_plain(options, kind):
    """There is no `hf_token` field: models are folders or in the hub's own cache, whose login serves private ones."""
    with kind(**options) as llm:
        llm.invoke(PROMPT)
        recorder = Recorder()
        llm.invoke(PROMPT, {"callbacks": [recorder]})
        shown = [repr(llm), str(llm), json.dumps(llm._serialized), dumps(llm), json.dumps(dumpd(llm))]
        shown.append(json.dumps(recorder.starts[0]["invocation_params"]))
    for text in shown:
        assert len(text) < 2000
        assert "tensor" not in text
        assert "Ensemble object" not in text
    assert "hf_token" not in kind.model_fields


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_what_is_dumped_can_be_loaded_where_that_is_allowed(kind):
    member = MemberConfig(model="/a/b", weight=2.0, model_kwargs={"attn_implementation": "eager"})
    options = {"n": 3, "temperature": 0.5, "max_tokens": 7, "stop": ["x"], "reasoning": False, "strict": True}
    shapes = {"json_schema": {"type": "object"}, "chat_template_kwargs": {"a": 1}, "weights": (1.0, 2.0), "main": "b"}
    for fusion in ("product", FusionConfig(power=0.7), UnionConfig(top_k=3), TranslateConfig(by_uncertainty=False)):
        model = kind(models=[member, "/a/c"], fusion=fusion, **options, **shapes)
        dumped = dumps(model)
        loaded = loads(dumped, allowed_objects=[kind], valid_namespaces=["deepen_integrations"])
        assert type(loaded) is kind
        assert loaded.loading() == model.loading()
        assert loaded._shared is model._shared
        assert loaded.sampling({}) == model.sampling({})
        assert (loaded.n, loaded.strict) == (3, True)
        with pytest.raises(ValueError, match="is not allowed"):
            loads(dumped, allowed_objects="core")


@pytest.mark.parametrize(("model", "name"), [(DeepenLLM, "llm"), (ChatDeepen, "chat")])
async def test_the_docstring_is_true(needs_demo, capsys, model, name):
    blocks = re.findall(r"```python\n(.*?)```", model.__doc__, re.DOTALL)
    assert len(blocks) >= 7
    names = {}
    for block in blocks:
        code = compile(textwrap.dedent(block), "docstring", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if (awaited := eval(code, names)) is not None:  # noqa: S307 (our own)
            await awaited
    assert capsys.readouterr().out
    names[name].close()


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc")
def test_a_thousand_calls_leave_nothing_behind(needs_demo, kind):
    code = f"""
import asyncio, threading
from resident import least_resident
from deepen_integrations.langchain import {kind.__name__}

llm = {kind.__name__}.demo(max_new_tokens=3, ignore_eos=True)
prompts = [f"Number {{n}} is" for n in range(10)]

def calls():  # 32, with 100 prompts
    for n in range(10):
        llm.invoke(prompts[n])
        list(llm.stream(prompts[n], seed=n))
        next(iter(llm.stream(prompts[n])))
    llm.batch(prompts * 4)
    asyncio.run(llm.abatch(prompts * 3))

for _ in range(3):
    calls()
before, threads = least_resident(calls, 8), threading.active_count()
for _ in range(16):
    calls()
print(least_resident(calls, 8) - before, threading.active_count() - threads)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    grown, threads = map(float, run.stdout.split())
    assert grown < 4, f"{grown} MiB more"
    assert threads == 0
    assert run.returncode == 0
    assert not run.stderr


def test_threads_do_not_grow(pair, kind):
    llm = kind.from_ensemble(pair, max_new_tokens=2, ignore_eos=True)
    llm.invoke(PROMPT)
    before = threading.active_count()
    for seed in range(30):
        llm.invoke(PROMPT, seed=seed)
        list(llm.stream(PROMPT, seed=seed))
    assert threading.active_count() == before
