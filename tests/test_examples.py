"""The examples run, in a process of their own that has no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deepen_core.demo import questions

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))

WARNINGS = ["-W", "error", "-W", "ignore::ResourceWarning"]  # LlamaIndex leaves an event loop open
OLD_NAMES = ["-W", "ignore::DeprecationWarning"]  # LlamaIndex's agents use old names of pydantic and of their own
OFFLINE = """
import runpy, socket, sys
def refuse(*arguments, **options):
    raise AssertionError(f"an example asked for the network: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("needs_demo")
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_runs_without_a_network(program, tmp_path):
    warnings = WARNINGS + OLD_NAMES if "agent" in program else WARNINGS
    command = [sys.executable, *warnings, "-c", OFFLINE, str(EXAMPLES / program)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    right, asked = fields_right(run.stdout) or answers_right(run.stdout)
    assert asked >= 6
    assert right >= asked * 2 / 3, run.stdout
    assert not run.stderr


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
