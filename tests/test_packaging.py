"""What a user gets: one wheel with both packages, all that it imports, errors that name the missing extra."""

import ast
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
# Which extra the modules of a folder may import from, besides what is always there.
EXTRAS = {
    "core/deepen_core/members/transformers/adapter.py": "peft",
    "core/deepen_core/members/llama_cpp": "gguf",
    "core/deepen_core/constraints/matcher.py": "structured",
    "core/deepen_core/constraints/grammar.py": "structured",
    "core/deepen_core/constraints/validation.py": "structured",
    "core/deepen_core/voting/risk.py": "voting",
    "core/deepen_core/members/ray/cluster.py": "ray",
    "deepen_integrations/cli/plot.py": "eval",
    "deepen_integrations/harness": "eval",
    "deepen_integrations/cli": "cli",
    "deepen_integrations/langchain": "langchain",
    "deepen_integrations/llama_index": "llama-index",
    "deepen_integrations/serve/ray.py": "ray",
    "deepen_integrations/serve/ray_router.py": "ray",
    "deepen_integrations/serve": "serve",
}
BESIDE = {"ray": "serve"}
"""Extras that are installed beside another one."""
NOT_IMPORTED = {"gguf": {"xllamacpp"}, "serve": {"httptools"}}
"""Distributions that are needed but not imported here: a shared library, and what uvicorn imports."""
OTHER_NAMES = {"yaml": "pyyaml"}
"""Modules that are not named like their distributions."""


def python(code: str, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter in which some packages cannot be imported."""
    code = f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def pyproject() -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings tomli
    return toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared() -> dict[str, list[str]]:
    """What pyproject.toml asks for, by extra; under "" what is always there."""
    project = pyproject()["project"]
    return {"": project["dependencies"]} | {name: project["optional-dependencies"][name] for name in EXTRAS.values()}


def bounds(requirements: Sequence[str]) -> dict[str, str]:
    """The lower bound of each requirement, by name."""
    return dict(re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<[\d.]+)?", text).groups() for text in requirements)


def imported(path: Path) -> set[str]:
    """The modules of other distributions that a module imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module)
    known = {*sys.stdlib_module_names, "deepen_core", "deepen_integrations"}
    return {name for name in names if name.partition(".")[0] not in known}


def distribution(module: str, names: Sequence[str]) -> str:
    """Which of some distributions a module is of: `llama_index.core.llms` of `llama-index-core`."""
    parts = OTHER_NAMES.get(module, module).replace("_", "-").split(".")
    return next((name for name in ("-".join(parts[:2]), parts[0]) if name in names), module)


def test_what_is_imported_is_declared_and_nothing_else():
    names = {extra: bounds(requirements) for extra, requirements in declared().items()}
    found = {extra: set() for extra in names}
    for package in ("core/deepen_core", "deepen_integrations"):
        for path in (ROOT / package).rglob("*.py"):
            place = path.relative_to(ROOT).as_posix()
            extra = next((extra for start, extra in EXTRAS.items() if f"{place}/".startswith(f"{start}/")), "")
            owners = ["", extra, BESIDE.get(extra, extra)]
            for module in imported(path):
                name = distribution(module, [name for owner in owners for name in names[owner]])
                found[next((owner for owner in owners if name in names[owner]), extra)].add(name)
    assert found == {extra: set(named) - NOT_IMPORTED.get(extra, set()) for extra, named in names.items()}


def test_the_lowest_constraints_are_the_lower_bounds():
    lowest = {name: bound for requirements in declared().values() for name, bound in bounds(requirements).items()}
    lowest["torch"] = "2.13.0"  # older ones are too large a download for a test
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", "\n".join(lines), re.MULTILINE))
    assert {name: pins.get(name) for name in lowest} == lowest


def test_extras_are_described_where_errors_name_them():
    from deepen_integrations import extras

    assert {*extras.EXTRAS, "all"} == {*pyproject()["project"]["optional-dependencies"]}


def test_a_person_finds_python_and_systems_in_the_classifiers():
    """Every Python from the oldest one on that `constraints.txt` is for, and the addresses in one place."""
    project = pyproject()["project"]
    oldest = int(project["requires-python"].removeprefix(">=3."))
    named = re.findall(r"Python :: 3\.(\d+)", "\n".join(project["classifiers"]))
    assert list(map(int, named)) == list(range(oldest, oldest + len(named)))
    assert sys.version_info < (3, oldest + len(named)), "add the classifier of the Python that the tests run with"
    assert all(address.startswith(project["urls"]["Homepage"]) for address in project["urls"].values())


def test_the_demo_is_small():
    weights = (ROOT / "core/deepen_core/demo").rglob("*.safetensors")
    assert 0 < sum(file.stat().st_size for file in weights) < 20e6


def test_the_version_is_written_once():
    from importlib.metadata import version

    import deepen_core

    assert deepen_core.__version__ == version("deepen-integrations")
    number = pyproject()["project"]["version"]
    sources = [*(ROOT / "core").rglob("*.py"), *(ROOT / "deepen_integrations").rglob("*.py")]
    assert not [path for path in sources if f'"{number}"' in path.read_text(encoding="utf-8")]


def test_what_llamahub_reads_is_what_can_be_imported():
    facts = pyproject()["tool"]["llamahub"]
    module = importlib.import_module(facts["import_path"])
    assert [*facts["class_authors"]] == [name for name in module.__all__ if isinstance(getattr(module, name), type)]
    assert facts["contains_example"] == any((ROOT / "examples").glob("llama_index_*.py"))


@pytest.mark.parametrize("package", ["deepen_core", "deepen_integrations"])
def test_packages_are_marked_as_typed(package):
    spec = importlib.util.find_spec(package)
    assert (Path(spec.origin).parent / "py.typed").is_file()


def test_importing_the_engine_is_light():
    heavy = ["torch", "transformers", "tokenizers", "langchain_core", "llama_index", "typer", "rich"]
    run = python(
        f"import sys, deepen_core, deepen_core.voting; print([name for name in {heavy} if name in sys.modules])"
    )
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_help_of_the_command_line_is_light():
    code = "import sys; import deepen_integrations.cli.commands; print('torch' in sys.modules)"
    assert python(code).stdout.strip() == "False"


def test_importing_the_adapters_prints_nothing_and_changes_nothing_of_others():
    """But for the one table in which LlamaIndex looks classes up by their names."""
    code = """
import logging, os, signal, sys, threading, warnings
import langchain_core.globals, langchain_core.language_models.chat_models, langsmith.client, llama_index.core
from llama_index.core.llms.loading import RECOGNIZED_LLMS

def state():
    root, settings = logging.getLogger(), llama_index.core.Settings
    return repr([
        (root.level, root.handlers, logging.getLogger("deepen_core").handlers, logging.root.manager.disable),
        (warnings.filters, dict(os.environ), threading.enumerate(), signal.getsignal(signal.SIGINT)),
        (sys.excepthook, sys.meta_path, sys.path_hooks, sys.path),
        (vars(settings), vars(langchain_core.globals), llama_index.core.global_handler),
        {name: kind for name, kind in RECOGNIZED_LLMS.items() if not name.startswith("Deepen")},
    ])

before = state()
import deepen_integrations.langchain, deepen_integrations.llama_index
assert state() == before, (before, state())
"""
    run = python(code)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("module", "blocked", "extra"),
    [
        ("deepen_integrations.langchain", ["langchain_core"], "langchain"),
        ("deepen_integrations.llama_index", ["llama_index"], "llama-index"),
        ("deepen_integrations.harness", ["lm_eval"], "eval"),
        ("deepen_integrations.serve", ["starlette"], "serve"),
        ("deepen_integrations.serve", ["uvicorn"], "serve"),
    ],
)
def test_an_adapter_without_its_extra_says_which(module, blocked, extra):
    run = python(f"import {module}", without=blocked)
    assert run.returncode == 1
    last_line = run.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError")
    assert f"deepen-integrations[{extra}]" in last_line


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_the_command_without_its_extra_says_which(missing):
    run = python("from deepen_integrations.cli import app; app()", without=[missing])
    assert run.returncode == 1
    assert run.stderr.strip() == f'deepen needs {missing}: pip install "deepen-integrations[cli]"'


def test_the_engine_runs_without_the_adapters_frameworks():
    blocked = ["langchain_core", "llama_index", "typer", "rich"]
    run = python("from deepen_core import Ensemble; print(Ensemble.__name__)", without=blocked)
    assert run.stdout.strip() == "Ensemble", run.stderr


@pytest.fixture
def wheel_names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


@pytest.mark.slow
def test_the_wheel_holds_both_packages_and_the_demo(wheel_names):
    models = "deepen_core/demo/models"
    assert {
        "deepen_core/__init__.py",
        "deepen_core/py.typed",
        "deepen_integrations/__init__.py",
        "deepen_integrations/py.typed",
        "deepen_integrations/cli/__init__.py",
        "deepen_integrations/langchain/__init__.py",
        "deepen_integrations/llama_index/__init__.py",
    } <= wheel_names
    for member in ("atlas-gpt2", "almanac-llama"):
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            assert f"{models}/{member}/{file}" in wheel_names


@pytest.mark.slow
def test_the_wheel_holds_nothing_else(wheel_names):
    tops = {name.partition("/")[0] for name in wheel_names}
    assert tops == {"deepen_core", "deepen_integrations", "deepen_integrations-0.1.0.dist-info"}
    assert not [name for name in wheel_names if "__pycache__" in name]
