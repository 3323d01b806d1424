"""What the commands say about answers and about the ensemble they use: speed, log-probabilities, the toy demo."""

import pytest
from cli_parts import run

from deepen_core.config.named_ensembles import FILE_VARIABLE
from deepen_core.errors import ConfigurationError
from deepen_integrations.cli.opening import TOY, named_options
from deepen_integrations.cli.options import EnsembleOptions

SPEED = "2 tokens in 1.00 s: 4.0 tokens/s, first token after 0.75 s (3 tokens of prompt)."


def one_line(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_stats_say_how_fast_an_answer_was(fake, command):
    result = run(command, "hi", "--stats")
    assert result.stdout.strip() == "Blue sky."
    assert result.stderr == SPEED + "\n"
    assert run(command, "hi").stderr == ""


def test_logprobs_are_shown_as_text(fake):
    result = run("generate", "text", "--logprobs", "1")
    assert fake.options == {"logprobs": 1}
    assert result.stdout == " Blue sky.\n"
    assert r"'\\xf0\\x9f'" in result.stderr
    assert "-0.50" in result.stderr


def test_max_tokens_has_two_names(fake):
    for name in ("--max-tokens", "--max-new-tokens"):
        run("generate", "text", name, "7")
        assert fake.options == {"max_new_tokens": 7}


@pytest.mark.parametrize(("arguments", "piped"), [([""], None), ([], ""), (["-"], "\n")])
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_an_empty_text_is_asked_for(fake, command, arguments, piped):
    if command == "chat" and not arguments:
        return  # it reads lines then
    result = run(command, *arguments, input=piped)
    assert result.exit_code == 2
    assert "It is empty. Give a text, or pipe one in." in one_line(result.stderr)
    assert fake.opened == {}


# Which ensemble


@pytest.fixture
def loaded(monkeypatch):
    """What `Ensemble.load` or `Ensemble.demo` was called with; they fail."""
    calls = []

    def fail(models, **options):
        calls.append({"models": models, **options})
        raise ConfigurationError("Not today.")

    monkeypatch.setattr("deepen_core.Ensemble.load", fail)
    monkeypatch.setattr("deepen_core.Ensemble.demo", lambda _members, **options: fail("demo", **options))
    return calls


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"question": "Q?", "choices": ["a", "b"], "answer": 0}\n')
    return str(path)


@pytest.mark.parametrize("command", ["generate", "chat", "info", "eval", "fit"])
def test_the_toy_demo_is_named_where_no_model_is(loaded, tasks, command):
    arguments = {"generate": ["text"], "eval": [tasks], "fit": [tasks]}.get(command, [])
    assert run(command, *arguments).stderr == f"{TOY}\nError: Not today.\n"
    assert loaded[0]["models"] == "demo"
    for named in (["-m", "a"], ["--demo"]):
        assert run(command, *arguments, *named).stderr == "Error: Not today.\n"


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "ensembles.yaml"
    path.write_text("pair:\n  models: [a, b]\n  main: b\n  fusion: product\n  weights: [1, 3]\n")
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    return path


def test_a_named_ensemble_is_loaded_with_its_options(loaded, file):
    result = run("info", "-e", "pair", "--gate", "0.5", "--fusion", "union")
    assert result.stderr == "Error: Not today.\n"
    wanted = {"models": ["a", "b"], "main": "b", "fusion": "union", "weights": [1, 3], "gate": 0.5, "chat": False}
    assert loaded == [wanted]


def test_a_named_ensemble_and_members_contradict_each_other(file):
    result = run("info", "-e", "pair", "-m", "a")
    assert result.exit_code == 2
    assert "--member and --ensemble each bring members" in one_line(result.stderr)


def test_an_unknown_ensemble_is_told_in_one_line(file):
    result = run("chat", "-e", "pear")
    assert result.exit_code == 1
    assert result.stderr == f"Error: There is no ensemble 'pear' in {file}: did you mean 'pair'?\n"


def test_languages_of_a_named_ensembles_members(file):
    options = named_options(EnsembleOptions(ensemble="pair", languages=["b=deu:fra"]))
    assert [(m.name, m.source_language, m.target_language) for m in options["models"]] == [
        ("a", None, None),
        ("b", "deu", "fra"),
    ]
