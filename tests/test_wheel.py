"""The wheel in environments of its own: without extras, with each alone, and with all."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_wheel import python_of

from deepen_integrations.extras import EXTRAS, install_command

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
BROUGHT_BY_OTHERS = {
    "": {"cli"},  # huggingface-hub has a command line of its own
    "eval": {"voting"},  # lm-eval needs sacrebleu
    "ray": {"serve"},
    "all": EXTRAS.keys() - {"eval", "ray"},
}
"""Extras that are there without being asked for."""
# Uses what each extra is for, and tells the error of each, or nothing. Warnings are errors.
PROBES = """
import json

def langchain():
    from deepen_integrations.langchain import ChatDeepen
    ChatDeepen.demo()

def llama_index():
    from deepen_integrations.llama_index import DeepenToolLLM
    DeepenToolLLM.demo()

def cli():
    import deepen_integrations.cli
    import sys
    sys.argv = ["deepen", "--version"]
    deepen_integrations.cli.app()

def structured():
    from deepen_core.config import resolve_sampling
    resolve_sampling(None, {"choices": ["a", "b"]})

def voting():
    from deepen_core.voting.risk import chrf
    chrf()("a", "b")

def serve():
    import deepen_integrations.serve
    from deepen_integrations.serve.page import Page
    Page()

def peft():
    import pathlib, tempfile
    from deepen_core.members.transformers.adapter import CONFIG, WEIGHTS, Adapter
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, CONFIG).write_text('{"r": 4}')
        Adapter.checked("adapter", pathlib.Path(folder), [CONFIG, WEIGHTS])

def gguf():
    import contextlib, pathlib, tempfile
    from deepen_core.config import MemberConfig
    from deepen_core.errors import ModelFilesError
    from deepen_core.members.llama_cpp.library import find_library, load_library
    from deepen_core.members.llama_cpp.loader import describe
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ModelFilesError):  # the file is cut off
        file = pathlib.Path(folder, "x.gguf")
        file.write_bytes(b"GGUF")
        describe(MemberConfig(model=str(file)), None, None)
    load_library(find_library())

def ray():
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        import deepen_integrations.serve.ray
        import deepen_integrations.serve.ray_router

def eval():
    import deepen_integrations.harness
    import matplotlib

told = {}
for probe in (langchain, llama_index, cli, structured, voting, serve, peft, gguf, ray, eval):
    try:
        probe()
    except (Exception, SystemExit) as problem:
        told[probe.__name__.replace("_", "-")] = "" if getattr(problem, "code", 1) == 0 else str(problem)
    else:
        told[probe.__name__.replace("_", "-")] = ""
print(json.dumps(told))
"""


def run(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the interpreter of an environment, outside of the repository, with warnings as errors."""
    command = [python_of(environment), "-I", "-W", "error", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("extra", ["", *EXTRAS, "all"])
def test_an_extra_brings_what_it_is_for_and_the_others_are_named(environment, extra):
    told = json.loads(run(environment(extra), "-c", PROBES).stdout.splitlines()[-1])
    assert told.keys() == EXTRAS.keys()
    installed = {extra, *BROUGHT_BY_OTHERS.get(extra, ()), *BROUGHT_BY_OTHERS[""]}
    for name, error in told.items():
        if name in installed:
            assert error == "", name
        else:
            # What Ray needs is looked for after what the server needs, which it would bring.
            asked = [name, "serve"] if name == "ray" and "serve" not in installed else [name]
            assert any(install_command(one) in error.replace("'", '"') for one in asked), (name, error)


def test_the_wheel_without_extras_answers(environment):
    code = "from deepen_core import Ensemble\nprint(Ensemble.demo().generate('Question: Where does Felix live?').text)"
    assert run(environment(""), "-c", code).stdout.strip()


def test_the_command_tells_what_is_installed(environment):
    found = json.loads(run(environment("cli"), "-m", "deepen_integrations.cli", "doctor", "--demo", "--json").stdout)
    extras = next(section["findings"] for section in found["sections"] if section["title"] == "Extras")
    assert {one["topic"]: one["state"] for one in extras} == {n: "ok" if n == "cli" else "note" for n in EXTRAS}


def test_types_are_known_outside_of_the_repository(environment, tmp_path):
    (tmp_path / "typed_use.py").write_text((HERE / "typed_use.txt").read_text(encoding="utf-8"), encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "typed_use.py"]
    given = ["--python-executable", str(python_of(environment("all")))]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run([*mypy, *given], capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    wrong = re.findall(r"^typed_use\.py:(\d+): error", done.stdout, re.MULTILINE)
    lines = (tmp_path / "typed_use.py").read_text(encoding="utf-8").splitlines()
    marked = [str(number) for number, line in enumerate(lines, 1) if "# wrong" in line]
    assert wrong == marked, done.stdout + done.stderr
