"""`deepen cache`: listing, finding and clearing the store of rows."""

import os
import time

import pytest
import torch
from typer.testing import CliRunner

from deepen_core.errors import DeepenError
from deepen_core.fusion.deepen.store import RowStore, fingerprint
from deepen_integrations.cli.commands import commands


def run(*arguments: str, input: str | None = None):  # noqa: A002 (CliRunner's name)
    return CliRunner().invoke(commands, ["cache", *arguments], input=input, env={"COLUMNS": "100"})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "a folder whose name is longer than a line of the terminal, so that it would be wrapped there"
    monkeypatch.setenv("DEEPEN_CACHE_DIR", str(path))
    return path


def keep(folder, model: str, days: float = 0.0, rows: int = 1500):
    """Puts rows of a model into the store; returns their file."""
    space = fingerprint(
        model=model,
        embeddings=torch.zeros(3, 2),
        vocabulary_digest=model,
        anchors=[b"a", b"b"],
        temperature=41.5,
        entries=2,
        dtype="float32",
        fixed=torch.zeros(3, dtype=torch.int32),
    )
    tensors = {
        "slot": torch.zeros(3, dtype=torch.int32),
        "index": torch.zeros(rows, 2, dtype=torch.int32),
        "value": torch.zeros(rows, 2),
        "spread": torch.zeros(rows),
    }
    assert RowStore(folder).save(space, tensors)
    path = folder / space.file_name
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def test_list_shows_each_file_oldest_first_and_the_sum(folder):
    keep(folder, "specialist")
    keep(folder, "[general]", days=3)
    result = run("list")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    general, specialist = (next(line for line in lines if name in line) for name in ("[general]", "specialist"))
    assert general.split()[:6] == ["[general]", "1,500", "2", "2", "41.5", "29.9"]
    assert lines.index(general) < lines.index(specialist)
    assert lines[-1] == f"2 files (59.8 KiB) in {folder}"


def test_list_of_nothing_says_so(folder):
    assert run("list").stdout == f"0 files (0 B) in {folder}\n"


def test_list_marks_what_cannot_be_read(folder):
    keep(folder, "general").write_bytes(b"damaged")
    result = run("list")
    assert "unreadable " in result.stdout
    assert "1 file (7 B)" in result.stdout


def test_list_shows_what_a_file_says_as_it_says_it(folder):
    path = keep(folder, "general")
    path.write_bytes(path.read_bytes().replace(b'"41.5"', b'"[/b]"'))
    assert "[/b]" in run("list").stdout


def test_where_prints_only_the_folder(folder):
    assert run("where").stdout == f"{folder}\n"
    assert not folder.exists()


def test_clear_asks_first(folder):
    path = keep(folder, "general")
    result = run("clear", input="n\n")
    assert result.exit_code == 1
    assert f"Remove 1 file (29.9 KiB) from {folder}?" in result.stderr
    assert path.exists()
    result = run("clear", input="y\n")
    assert result.exit_code == 0
    assert result.stdout.endswith("29.9 KiB freed.\n")
    assert not path.exists()


def test_clear_without_an_answer_removes_nothing(folder):
    path = keep(folder, "general")
    assert run("clear", input="").exit_code == 1
    assert path.exists()


@pytest.mark.parametrize("yes", ["--yes", "-y"])
def test_clear_can_go_by_age(folder, yes):
    young, old = keep(folder, "young", days=1), keep(folder, "old", days=3)
    result = run("clear", "--older-than", "2", yes)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "29.9 KiB freed.\n", "")
    assert young.exists()
    assert not old.exists()


def test_clear_asks_about_no_more_than_it_removes(folder):
    keep(folder, "young", days=1)
    assert run("clear", "--older-than", "2").stdout == "0 B freed.\n"
    keep(folder, "old", days=3)
    assert "Remove 1 file" in run("clear", "--older-than", "2", input="y\n").stderr


def test_clear_refuses_a_negative_age(folder):
    assert run("clear", "--older-than", "-1").exit_code == 2


def test_clear_tells_what_it_could_not_remove(folder, monkeypatch):
    keep(folder, "general")

    def refuse(path, **_):
        raise PermissionError("not yours")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    result = run("clear", "--yes")
    assert result.stdout == "0 B freed.\n"
    assert result.stderr.startswith("Warning: ")
    assert result.stderr.endswith("cannot be removed (not yours).\n")
    assert result.stderr.count("\n") == 1


def test_an_error_is_one_line_unless_debugging(folder, monkeypatch):
    def fail(_):
        raise DeepenError("No.")

    monkeypatch.setattr(RowStore, "entries", fail)
    result = run("list")
    assert (result.exit_code, result.stderr) == (1, "Error: No.\n")
    assert isinstance(run("list", "--debug").exception, DeepenError)


@pytest.mark.parametrize("command", ["list", "where", "clear"])
def test_every_command_shows_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"deepen cache {command}" in result.stdout.partition("Examples:")[2]
