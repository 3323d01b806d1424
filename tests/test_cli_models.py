"""The `deepen` command on real models: the embedded demo and, where they are there, two from outside the repository."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deepen_core.demo import MEMBERS, questions
from deepen_integrations.cli.commands import commands

MODELS = Path(__file__).parents[2] / "shared" / "models"


def run(*arguments: str, input: str | None = None):  # noqa: A002 (CliRunner's name)
    return CliRunner().invoke(commands, list(arguments), input=input)


@pytest.mark.slow
def test_demo_prints_every_answer_and_the_counts():
    result = run("demo", "--questions", "3")
    assert result.exit_code == 0, result.output
    for question in questions()[:3]:
        assert question.answer in result.stdout
    assert "together" in result.stdout.splitlines()[-1]


def test_generate_answers_from_the_demo_ensemble():
    question = questions()[0]
    result = run("generate", question.prompt, "--max-new-tokens", "8", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["usage"]["completion_tokens"] > 0
    streamed = run("generate", "-", "--max-new-tokens", "8", input=question.prompt)
    assert streamed.stdout == record["text"] + "\n"


def test_info_describes_the_demo_ensemble():
    result = run("info", "--json")
    assert [m["name"] for m in json.loads(result.stdout)["members"]] == list(MEMBERS)


def test_chat_works_with_the_demo_ensemble():
    result = run("chat", "--demo", "--max-new-tokens", "8", input=questions()[0].text + "\n")
    assert result.exit_code == 0, result.output
    assert "Error" not in result.stderr
    assert result.stdout.strip("> \n")


@pytest.mark.slow
def test_a_folder_that_is_no_model_is_told_in_one_line(tmp_path):
    command = [sys.executable, "-m", "deepen_integrations.cli", "generate", "-m", str(tmp_path), "text"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) == 1
    assert str(tmp_path) in ended.stderr


@pytest.mark.skipif(not MODELS.is_dir(), reason="shared/models is not beside this checkout")
def test_generate_with_two_real_models_from_disk():
    members = ["-m", str(MODELS / "stories260K"), "-m", str(MODELS / "babyllama105")]
    result = run("generate", *members, "--max-new-tokens", "20", "Once upon a time")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.split()) > 3
