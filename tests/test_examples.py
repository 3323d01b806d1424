"""The examples run, in a process of their own that has no network."""

import re
from pathlib import Path

import pytest
from programs import WARNINGS

from deepen_core.demo import questions

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))

# LlamaIndex's agents use old names of pydantic and of their own.
OLD_NAMES = {**WARNINGS, "DeprecationWarning": "ignore"}


@pytest.mark.slow
@pytest.mark.usefixtures("needs_demo")
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_runs_without_a_network(programs, program, tmp_path):
    run = programs.run(tmp_path, path=EXAMPLES / program, warnings=OLD_NAMES if "agent" in program else WARNINGS)
    assert run.code == 0, run.errors
    right, asked = fields_right(run.output) or answers_right(run.output)
    assert asked >= 6
    assert right >= asked * 2 / 3, run.output
    assert not run.errors


def fields_right(output):
    """What an example that fills objects says of them."""
    said = re.search(r"^(\d+) of (\d+) fields are what the documents say$", output, re.MULTILINE)
    return said and tuple(map(int, said.groups()))


def answers_right(output):
    """How many of the demo's questions an example answers rightly, of how many."""
    asked = [question for question in questions() if question.text in output]
    return sum(bool(re.search(rf"{re.escape(q.text)} +{q.answer}\b", output)) for q in asked), len(asked)


def test_the_list_of_examples_is_complete():
    listed = re.findall(r"^\| \[(\S+)\]\((\S+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [(program, program) for program in PROGRAMS]
