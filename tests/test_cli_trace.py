"""`deepen trace` and `deepen generate --trace`."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from cli_parts import run

from deepen_core import Ensemble
from deepen_core.tracing import Trace
from deepen_integrations.cli.traces import Painter

SHOWN = Path(__file__).parent.parent / "docs" / "trace.svg"
pytestmark = pytest.mark.usefixtures("needs_demo")


def test_the_example_of_the_demo(tmp_path):
    files = {kind: tmp_path / f"trace.{kind}" for kind in ("html", "svg", "jsonl")}
    asked = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    result = run("trace", "--demo", "--max-tokens", "20", *asked)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Bianca's home is in Vienna, and her house number is 31.")
    assert "almanac-llama" in result.stderr
    assert "20 steps, in" in result.stderr
    trace = Trace.from_jsonl(files["jsonl"].read_text())
    assert len(trace.steps) == 20
    assert "Bianca&#x27;s home is in" in files["html"].read_text()
    ET.fromstring(files["svg"].read_text())  # noqa: S314 (made here)


def test_a_question_is_asked_as_a_message_unless_it_is_plain():
    asked = run("trace", "--demo", "Anna's home is in", "--max-tokens", "6")
    plain = run("trace", "--demo", "Anna's home is in", "--max-tokens", "6", "--plain")
    with Ensemble.demo() as ensemble:
        said = ensemble.generate("Anna's home is in", max_new_tokens=6).text
    assert plain.stdout == f"{said}\n" != asked.stdout
    assert asked.exit_code == plain.exit_code == 0


def test_generate():
    result = run("generate", "--demo", "--trace", "Where does Felix live?", "--max-tokens", "8")
    assert result.stdout == run("generate", "--demo", "Where does Felix live?", "--max-tokens", "8").stdout
    assert "2 steps, in" in result.stderr  # a city, and the end
    told = json.loads(run("generate", "--demo", "--trace", "--json", "x", "--max-tokens", "3").stdout)
    assert len(Trace.from_dict(told["trace"]).steps) == 3


def test_what_does_not_go_together(tmp_path):
    result = run("generate", "--demo", "--trace", "--votes", "2", "x")
    assert result.exit_code == 2
    result = run("trace", "--demo", "x", "--max-tokens", "2", "--svg", str(tmp_path / "no" / "where.svg"))
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


class Step:
    ends = False

    def __init__(self, text):
        self.text, self.token = text, text.encode()
        self.by, self.decision, self.is_likeliest = "a", "main", True


def painted(parts, *texts):
    """The parts of some pieces of an answer that have a colour, and those that have none."""
    painter, found = Painter(), []
    for text, steps in zip(texts, parts, strict=True):
        trace = Trace("a", ["a"], [Step(step) for step in steps])
        painter._waiting += list(zip(trace.pieces(), steps, strict=True))
        found += list(painter._coloured(text))
    return found


def test_colours_follow_the_text_where_it_lags():
    assert painted([["ab", "cd"]], "abcd") == [("ab", "ab"), ("cd", "cd")]
    assert painted([[" ab", "c"]], "abc") == [("ab", " ab"), ("c", "c")]  # a dummy space is no part of the text
    assert painted([["ab", "cd"], ["ef"]], "abc", "def") == [("ab", "ab"), ("c", "cd"), ("d", "cd"), ("ef", "ef")]
    lost = painted([["ab"]], "xy")
    assert "".join(text for text, _ in lost) == "xy"


def test_a_terminal_gets_colours_and_no_commands(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    Painter().write("a\x1b[2Jb", Trace("a", ["a"], [Step("a\x1b[2Jb")]))
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert "a␛[2Jb" in shown


def test_the_picture_in_the_docs_is_what_the_command_draws(tmp_path):
    """But for the numbers, which rounding may change."""
    assert run("trace", "--demo", "--svg", str(tmp_path / "trace.svg")).exit_code == 0
    drawn, shown = (re.sub(r"[\d.]+", "", path.read_text(encoding="utf-8")) for path in (tmp_path / "trace.svg", SHOWN))
    assert drawn == shown
