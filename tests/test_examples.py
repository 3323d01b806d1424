"""The examples run, in a process of their own that has no network."""

import re
from pathlib import Path

import pytest
from programs import WARNINGS
from real_parts import QWEN, REAL, SMOL, real

from deepen_core.demo import member_paths, questions

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))
ON_A_PAIR = [program for program in PROGRAMS if program.startswith("real_pair")]
ON_THE_DEMO = [program for program in PROGRAMS if program not in ON_A_PAIR]
PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")

# LlamaIndex's agents use old names of pydantic and of their own.
OLD_NAMES = {**WARNINGS, "DeprecationWarning": "ignore"}


@pytest.mark.slow
@pytest.mark.usefixtures("needs_demo")
@pytest.mark.parametrize("program", ON_THE_DEMO)
def test_an_example_runs_without_a_network(programs, program, tmp_path):
    run = programs.run(tmp_path, path=EXAMPLES / program, warnings=OLD_NAMES if "agent" in program else WARNINGS)
    assert run.code == 0, run.errors
    right, asked = marked(run.output) or answers_right(run.output)
    assert asked >= 6
    assert right >= asked * 3 / 4, run.output
    assert not run.errors


def marked(output):
    """How much of what it was asked an example says is right, of how much; None if it says nothing of that."""
    counted = re.findall(r"\b(\d+) of (\d+) (?:right|fields are what)\b", output)
    counted += [(mark == "right", 1) for mark in re.findall(r" (right|it is \w+), after ", output)]
    return tuple(sum(map(int, numbers)) for numbers in zip(*counted, strict=True)) if counted else None


def answers_right(output):
    """How many of the demo's questions an example answers rightly, of how many."""
    asked = [question for question in questions() if question.text in output]
    return sum(bool(re.search(rf"{re.escape(q.text)} +{q.answer}\b", output)) for q in asked), len(asked)


def run_with(programs, program, models, folder):
    """Runs a program with models as its arguments."""
    path = str(EXAMPLES / program)
    code = f"import runpy, sys; sys.argv[:] = {[path, *models]}; runpy.run_path({path!r}, run_name='__main__')"
    return programs.run(folder, code=code, warnings=OLD_NAMES)


@pytest.mark.slow
@pytest.mark.usefixtures("needs_demo")
@pytest.mark.parametrize("program", ON_A_PAIR)
def test_an_example_for_a_real_pair_takes_any_models(programs, program, tmp_path):
    """The demo's answer nothing sensible there, but in the form that is asked for."""
    run = run_with(programs, program, map(str, member_paths()), tmp_path)
    assert run.code == 0, run.errors
    assert "An object: " in run.output


@pytest.mark.parametrize("program", [pytest.param(program, marks=REAL) for program in ON_A_PAIR])
def test_an_example_says_what_is_quoted_of_it(programs, program, tmp_path):
    run = run_with(programs, program, [real(QWEN), real(SMOL)], tmp_path)
    assert run.code == 0, run.errors
    quoted = re.findall(r"^````text\n(.*?)^````$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(quoted) == len(ON_A_PAIR)
    assert run.output == quoted[ON_A_PAIR.index(program)]


def test_the_list_of_examples_is_complete():
    listed = re.findall(r"^\| \[(\S+)\]\((\S+)\)", PAGE, re.MULTILINE)
    assert listed == [(program, program) for program in (*ON_A_PAIR, *ON_THE_DEMO)]
