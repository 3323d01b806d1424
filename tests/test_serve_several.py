"""`deepen serve` of several named ensembles."""

import pytest
import yaml
from cli_parts import run

from deepen_core.demo import member_paths

PAIR = [str(path) for path in member_paths()]


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Describes two ensembles, and returns what is served in place of serving it."""
    file = tmp_path / "ensembles.yaml"
    file.write_text(yaml.safe_dump({"fast": {"models": PAIR[:1]}, "careful": {"models": PAIR}}, sort_keys=False))
    monkeypatch.setenv("DEEPEN_ENSEMBLES", str(file))
    found = {}

    def serve(models, options, **given):
        found.update(models=models, options=options, **given)

    monkeypatch.setattr("deepen_integrations.serve.serve", serve)
    return found


def members(load):
    with load() as ensemble:
        return [member.name for member in ensemble.info.members]


def test_each_is_loaded_under_its_name(served, needs_demo):
    result = run("serve", "-e", "careful", "-e", "fast", "--temperature", "0.5")
    assert result.exit_code == 0, result.output
    assert [*served["models"]] == ["careful", "fast"]
    assert {name: members(load) for name, load in served["models"].items()} == {
        "careful": ["atlas-gpt2", "almanac-llama"],
        "fast": ["atlas-gpt2"],
    }
    assert served["sampling"] == {"careful": {"temperature": 0.5}, "fast": {"temperature": 0.5}}


def test_all_of_the_file(served):
    assert run("serve", "--all").exit_code == 0
    assert [*served["models"]] == ["fast", "careful"]
    assert run("serve", "--all", "-e", "careful").exit_code == 0
    assert [*served["models"]] == ["careful", "fast"]


def test_one_has_the_name_that_it_is_given(served):
    assert run("serve", "-e", "fast", "--name", "other").exit_code == 0
    assert [*served["models"]] == ["other"]
    assert run("serve", "-m", PAIR[0], "-m", PAIR[1]).exit_code == 0
    assert [*served["models"]] == ["atlas-gpt2+almanac-llama"]
    assert run("serve").exit_code == 0
    assert [*served["models"]] == ["demo"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-e", "fast", "-e", "fast"], 2, "have one name"),
        (["-e", "fast", "-e", "careful", "--name", "x"], 2, "several have their own"),
        (["-e", "fast", "-m", "model"], 2, "each bring members"),
        (["--all", "--demo"], 2, "each bring members"),
        (["-e", "fast", "-e", "nothing"], 1, "There is no ensemble 'nothing'"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_loaded(served, arguments, code, said):
    result = run("serve", *arguments)
    assert result.exit_code == code
    assert said in " ".join(result.output.replace("│", " ").split())
    assert not served


def test_no_file(served, monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPEN_ENSEMBLES", str(tmp_path / "none.yaml"))
    result = run("serve", "--all")
    assert result.exit_code == 1
    assert "There are no ensembles" in result.output
