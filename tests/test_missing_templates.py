"""Members without a chat template: whoever only has conversations learns of them before any weights are read."""

import asyncio
import json
import shutil

import pytest
import torch
import transformers
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage
from typer.testing import CliRunner

from deepen_core import Ensemble
from deepen_core.errors import ChatTemplateError
from deepen_core.fusion.policies import WeightPolicy
from deepen_integrations.cli.commands import commands
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.langchain import DeepenLLM as LangChainLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM
from deepen_integrations.llama_index import DeepenToolLLM

TALK = [{"role": "user", "content": "Hi"}]
ONE = (
    "Member 'gamma' has no chat template, so it cannot read a conversation: give a plain text, use an "
    "instruction-tuned model, or give it a template: chat_template.jinja in its folder, or "
    "MemberConfig(chat_template=...)."
)
TWO = (
    "Members 'gamma' and 'gamma-2' have no chat template, so they cannot read a conversation: give a plain text, use "
    "instruction-tuned models, or give each a template: chat_template.jinja in its folder, or "
    "MemberConfig(chat_template=...)."
)


@pytest.fixture
def weights_read(monkeypatch):
    """The folders whose weights are read."""
    read, load = [], transformers.AutoModelForCausalLM.from_pretrained

    def spy(folder, **options):
        read.append(folder.name)
        return load(folder, **options)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", spy)
    return read


@pytest.fixture
def options(folders, tmp_path):
    """Options of adapters for two members, the second without a template, which no other test has loaded."""
    models = [shutil.copytree(folders[name], tmp_path / name) for name in ("beta", "gamma")]
    return {"models": models, "device": "cpu", "progress": False, "max_new_tokens": 2}


class FirstOnly(WeightPolicy):
    """Gives the whole weight to the first member."""

    def weights(self, step):
        return torch.eye(step.speaking.shape[1])[:1].expand(len(step.speaking), -1)

    def describe(self):
        return [1.0, 0.0]


# The engine


@pytest.mark.parametrize(
    ("names", "options", "told"),
    [
        (["beta", "gamma"], {}, ONE),
        (["gamma", "beta"], {}, ONE),
        (["gamma", "beta", "gamma"], {}, TWO),
        (["gamma", "beta"], {"weights": [0, 1]}, ONE),  # main reads every prompt
        (["beta", "gamma", "gamma"], {"weights": [1, 0, 1]}, ONE.replace("gamma", "gamma-2")),
    ],
)
def test_a_chat_finds_them_before_weights_are_read(load, weights_read, names, options, told):
    with pytest.raises(ChatTemplateError) as caught:
        load(*names, chat=True, **options)
    assert str(caught.value) == told
    assert weights_read == []
    with load(*names, **options) as ensemble, pytest.raises(ChatTemplateError) as later:
        ensemble.generate(TALK)  # the engine itself finds the first of them
    assert str(later.value) == told.replace(TWO, ONE)


@pytest.mark.parametrize("weights", [[1, 0], FirstOnly()])
def test_members_that_never_run_need_no_template(load, weights):
    with load("beta", "gamma", weights=weights, chat=True) as ensemble:
        assert ensemble.generate(TALK, max_new_tokens=2, ignore_eos=True).token_ids


def test_with_templates_a_chat_loads_as_ever(load):
    with load("alpha", "beta", chat=True) as ensemble:
        assert ensemble.generate(TALK, max_new_tokens=2, ignore_eos=True).token_ids
        assert ensemble.generate("Hi", max_new_tokens=2, ignore_eos=True).token_ids


# Adapters


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
def test_a_chat_model_of_langchain_whose_files_came_later(options, weights_read, way):
    here = options["models"][1]
    there = here.rename(here.parent / "elsewhere")
    chat = ChatDeepen(**options)
    there.rename(here)
    with pytest.raises(ChatTemplateError) as caught:
        called(chat, way, "Hi")
    assert str(caught.value) == ONE
    assert weights_read == []
    text = LangChainLLM(**options)
    assert text.invoke("Hi") is not None  # the same members, for a text
    assert weights_read == ["beta", "gamma"]
    with pytest.raises(ChatTemplateError) as again:
        called(chat, way, "Hi")
    assert str(again.value) == ONE
    assert weights_read == ["beta", "gamma"]


@pytest.mark.parametrize("main", [0, 1])
def test_a_chat_model_of_langchain_is_refused_at_construction(options, weights_read, main):
    with pytest.raises(ModelInvalidRequestError) as caught:
        ChatDeepen(**options, main=main)
    assert isinstance(caught.value, ChatTemplateError)
    assert str(caught.value) == ONE
    assert ChatDeepen(**options, weights=[1, 0]).get_num_tokens_from_messages([HumanMessage("Hi there")]) > 2
    assert weights_read == []


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
def test_a_text_model_of_langchain_that_must_use_templates(options, weights_read, way):
    llm = LangChainLLM(**options, apply_chat_template=True)
    with pytest.raises(ChatTemplateError) as caught:
        called(llm, way, [HumanMessage("Hi")])
    assert str(caught.value) == ONE
    assert weights_read == []
    texts, talks = ["Hi", "You"], [[HumanMessage("Hi")]]
    answers = llm.batch([*texts, *talks], return_exceptions=True)
    assert [type(a) for a in answers[:2]] == [str, str]
    assert isinstance(answers[2], ChatTemplateError)


def test_a_text_model_of_langchain_joins_messages_where_it_may(options, weights_read):
    assert LangChainLLM(**options).invoke([HumanMessage("Hi")]) is not None
    assert weights_read == ["beta", "gamma"]


@pytest.mark.parametrize("kind", [LlamaIndexLLM, DeepenToolLLM])
def test_models_of_llama_index_answer_without_templates(options, kind):
    llm = kind(**options, ignore_eos=True)
    assert llm.complete("Hi").raw["usage"]["completion_tokens"] == 2
    assert llm.chat([ChatMessage("Hi")]).raw["usage"]["completion_tokens"] == 2


def called(model, way, prompt):
    if way in ("stream", "batch"):
        return list(getattr(model, way)([prompt] if way == "batch" else prompt))
    if way == "astream":
        return asyncio.run(collected(model.astream(prompt)))
    if way == "invoke":
        return model.invoke(prompt)
    return asyncio.run(getattr(model, way)([prompt] if way == "abatch" else prompt))


async def collected(pieces):
    return [piece async for piece in pieces]


# The command line


def test_a_chat_in_the_terminal(folders, weights_read):
    members = ["-m", str(folders["beta"]), "-m", str(folders["gamma"]), "--device", "cpu"]
    ended = CliRunner().invoke(commands, ["chat", *members], input="Hi\n")
    assert ended.exit_code == 1
    assert ended.stderr == f"Error: {ONE} `deepen generate` continues plain text.\n"
    assert weights_read == []
    ended = CliRunner().invoke(commands, ["generate", *members, "--max-new-tokens", "2", "Hi"])
    assert ended.exit_code == 0
    ended = CliRunner().invoke(commands, ["chat", *members, "--weights", "1,0", "--max-new-tokens", "2"], input="Hi\n")
    assert ended.exit_code == 0, ended.output


def test_a_template_that_was_put_into_the_folder(folders, tmp_path):
    whole = shutil.copytree(folders["gamma"], tmp_path / "gamma")
    config = json.loads((whole / "tokenizer_config.json").read_text())
    assert "chat_template" not in config
    (whole / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with Ensemble.load([folders["beta"], whole], device="cpu", progress=False, chat=True) as ensemble:
        assert ensemble.has_chat_template
