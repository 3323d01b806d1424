"""Ensembles described in YAML files: where they are looked for, what they may hold, and who can load them."""

import inspect
import pickle
from pathlib import Path

import pytest

from deepen_core import Ensemble
from deepen_core.config.named_ensembles import OPTIONS, ensemble_names, ensemble_options, ensembles_file
from deepen_core.demo import member_paths
from deepen_core.errors import ConfigurationError


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The user's file of ensembles, not written yet."""
    monkeypatch.delenv("DEEPEN_ENSEMBLES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = ensembles_file()
    path.parent.mkdir(parents=True)
    return path


def demo_yaml(name: str = "almanac") -> str:
    first, second = member_paths()
    return f"{name}:\n  models: [{first}, {{model: {second}, name: second, weight: 2}}]\n  main: second\n  gate: 0.9\n"


def test_the_file_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("DEEPEN_ENSEMBLES", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert ensembles_file() == Path.home() / ".config" / "deepen" / "ensembles.yaml"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert ensembles_file() == tmp_path / "deepen" / "ensembles.yaml"
    monkeypatch.setenv("DEEPEN_ENSEMBLES", "~/mine.yaml")
    assert ensembles_file() == Path.home() / "mine.yaml"


def test_options_are_those_of_load():
    """But for those that say how it is loaded this time."""
    arguments = [name for name in inspect.signature(Ensemble.load).parameters if name not in ("chat", "progress")]
    assert list(OPTIONS) == arguments


def test_an_ensemble_is_loaded_by_its_name(file):
    file.write_text(demo_yaml())
    assert ensemble_names() == ["almanac"]
    with Ensemble.from_config("almanac", device="cpu", progress=False) as ensemble:
        info = ensemble.info
    assert (info.main, [round(m.weight, 3) for m in info.members]) == ("second", [0.333, 0.667])
    assert info.gate is not None


def test_a_mapping_and_a_path_are_descriptions_too(tmp_path):
    wanted = {"models": [str(path) for path in member_paths()], "fusion": "product"}
    assert ensemble_options(wanted) == wanted
    path = tmp_path / "team"
    text = "fusion: product\nmodels:\n" + "".join(f"  - {model}\n" for model in wanted["models"])
    path.write_text(text)
    assert ensemble_options(path) == wanted
    path.with_suffix(".yml").write_text("team:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    assert ensemble_options(str(path.with_suffix(".yml"))) == wanted


def test_paths_are_relative_to_the_file(file, monkeypatch, tmp_path):
    models = file.parent / "models" / "a"
    models.mkdir(parents=True)
    (file.parent / "form.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path)
    file.write_text(
        "it:\n  models:\n    - models/a\n    - ./not/there\n    - owner/model\n    - ~/b\n"
        "    - {model: ../c, chat_template: form.jinja, tokenizer: ./models/a}\n    - {model: /d, name: e}\n"
    )
    assert ensemble_options("it")["models"] == [
        str(models),
        str(file.parent / "not" / "there"),
        "owner/model",
        "~/b",
        {
            "model": str(file.parent.parent / "c"),
            "chat_template": str(file.parent / "form.jinja"),
            "tokenizer": str(models),
        },
        {"model": "/d", "name": "e"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "it:\n  models: [a]\n  wieghts: [1]\n",
            r"Ensemble 'it' in .*: unknown option 'wieghts': did you mean 'weights'",
        ),
        ("it:\n  models: [a]\n  progress: true\n", "unknown option 'progress': known are models, main"),
        ("it:\n  main: 0\n", "has no 'models'"),
        ("it: [a, b]\n", r"is \['a', 'b'\]: give the options"),
        ("- it\n", "not a mapping of names to ensembles"),
        ("it:\n  models: [a\n", "not YAML (.|\n)*line 3"),
        ("it: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("it:\n  models: [a]\nit:\n  models: [b]\n", r"'it' is given twice(.|\n)*line 3"),
        ("itt:\n  models: [a]\n", "no ensemble 'it' in .*: did you mean 'itt'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(file, text, message):
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        ensemble_options("it")


def test_a_missing_file_is_named(file):
    with pytest.raises(ConfigurationError, match=r"no file .*ensembles.yaml: write it, set DEEPEN_ENSEMBLES"):
        Ensemble.from_config("it")
    assert ensemble_names() == []
    with pytest.raises(ConfigurationError, match=r"none.yaml cannot be read"):
        ensemble_options("none.yaml")
    with pytest.raises(ConfigurationError, match="3 is not an ensemble"):
        ensemble_options(3)


def test_a_path_with_several_ensembles_says_how_to_name_one(tmp_path):
    path = tmp_path / "several.yaml"
    path.write_text("a: {models: [x]}\nb: {models: [y]}\n")
    with pytest.raises(ConfigurationError, match=r"several ensembles \(a, b\): set DEEPEN_ENSEMBLES"):
        ensemble_options(path)


def test_wrong_members_and_values_are_told_before_anything_is_loaded(file):
    file.write_text("it:\n  models: [{model: a, wieght: 2}]\n")
    with pytest.raises(ConfigurationError, match="Unknown option 'wieght': did you mean 'weight'"):
        Ensemble.from_config("it")
    file.write_text("it:\n  models: [a]\n")
    with pytest.raises(ConfigurationError, match="unknown option 'fusoin': did you mean 'fusion'"):
        Ensemble.from_config("it", fusoin="union")


def adapters() -> list[type]:
    from deepen_integrations import langchain, llama_index

    return [langchain.DeepenLLM, langchain.ChatDeepen, llama_index.DeepenLLM, llama_index.DeepenToolLLM]


@pytest.mark.parametrize("adapter", adapters(), ids=lambda kind: f"{kind.__module__.split('.')[1]}.{kind.__name__}")
def test_adapters_know_named_ensembles_and_share_them(file, adapter):
    file.write_text(demo_yaml())
    llm = adapter.from_config("almanac", max_tokens=5)
    assert (llm.main, llm.gate, llm.max_tokens) == ("second", 0.9, 5)
    with adapter.from_config("almanac", gate=None, progress=False) as other:
        assert other.gate is None
    file.unlink()  # copies do not need it again
    copies = [pickle.loads(pickle.dumps(llm)), llm.model_copy(), llm.with_options(temperature=0.5)]
    assert all(copy.loading() == llm.loading() for copy in copies)
    with llm:
        assert all(copy.ensemble is llm.ensemble for copy in copies)
    with pytest.raises(ConfigurationError, match="temprature"):
        adapter.from_config({"models": ["a"]}, temprature=1)
