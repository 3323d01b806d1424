"""README and docs are true: snippets and commands run, links and tables fit the code and the measurements."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deepen_core import errors
from deepen_core.config import SamplingParams
from deepen_core.config.named_ensembles import ensemble_options
from deepen_core.members.loading import member_configs
from deepen_integrations.cli.commands import commands

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def blocks(language: str, page: Path = PAGES[0]) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell_commands(program: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    return [words for words in lines if words[:1] == [program]]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "snippet",
    [snippet for page in PAGES for snippet in blocks("python", page)],
    ids=lambda code: code.strip().splitlines()[-1],
)
def test_snippets_run_in_a_fresh_process(programs, snippet, tmp_path):
    run = programs.run(tmp_path, code=snippet, warnings={})
    assert run.code == 0, run.errors
    assert run.output.strip()


@pytest.mark.parametrize("words", shell_commands("make"), ids=" ".join)
def test_make_targets_exist(words):
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("words", shell_commands("deepen"), ids=" ".join)
def test_commands_run(words):
    """Those on models that only stand for the reader's own must get as far as looking for them."""
    result = CliRunner().invoke(commands, words[1:], input="")
    if "--member" in words:
        assert result.exit_code == 1, result.output
        assert "models/general" in result.stderr
    else:
        assert result.exit_code == 0, result.output


COMMAND_LINE = ROOT / "docs" / "command_line.md"


@pytest.mark.parametrize("line", "".join(blocks("bash", COMMAND_LINE)).splitlines())
def test_commands_of_their_own_page_run(needs_demo, line):
    piped, _, command = line.rpartition(" | ")
    result = CliRunner().invoke(commands, shlex.split(command)[1:], input=piped.removeprefix("echo ").strip('"'))
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


def test_the_named_ensemble_of_the_page_can_be_read(tmp_path):
    (tmp_path / "ensembles.yaml").write_text(blocks("yaml", COMMAND_LINE)[0], encoding="utf-8")
    members = member_configs(ensemble_options(tmp_path / "ensembles.yaml")["models"])
    assert [(member.name, member.weight) for member in members] == [("smollm2-135m", 1), ("coder", 2)]


def test_test_files_that_are_named_exist():
    """Those of `make test-lowest`, which ends at once without one of them, and those of the pages."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lowest = " ".join(re.findall(r"tests/test_%\.py,([^)]*)\)", makefile)).replace("\\\n", " ").split()
    named = {name for page in PAGES for name in re.findall(r"tests/(test_\w+)\.py", page.read_text(encoding="utf-8"))}
    assert len(lowest) > 10
    assert named
    for name in (*(f"test_{name}" for name in lowest), *named):
        assert (ROOT / "tests" / f"{name}.py").is_file(), name


def test_there_is_something_to_run():
    assert len(blocks("python")) >= 4
    assert shell_commands("make")
    assert shell_commands("deepen")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["fusion.md", "decoding.md"])
def test_tables_of_the_pages_are_what_was_measured(name):
    from benchmarks import page

    text = (page.DOCS / name).read_text(encoding="utf-8")
    assert page.filled(text, page.PAGES[name]()) == text, "run: python -m benchmarks.page"


def test_every_sampling_option_is_in_the_table():
    first_cells = "".join(line.split("|")[1] for line in section("Options").splitlines() if line.startswith("|"))
    assert set(SamplingParams.model_fields) <= set(re.findall(r"`(\w+)`", first_cells))


def test_every_error_in_the_table_exists():
    named = re.findall(r"^\| `(\w+)`", section("Errors"), re.MULTILINE)
    assert named
    for name in named:
        assert issubclass(getattr(errors, name), errors.DeepenError)
