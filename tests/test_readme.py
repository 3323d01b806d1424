"""README and docs are true: snippets and commands run, links and tables fit the code and the measurements.

Snippets that name models of the hub run on the demo's folders in their place, and on the models themselves where
`DEEPEN_REAL_MODELS` names a folder with them: then they must say what is quoted after them.
"""

import re
import shlex
from pathlib import Path

import pytest
from real_parts import REAL, real
from typer.testing import CliRunner

from benchmarks.given_text import MODELS
from deepen_core.config import SamplingParams
from deepen_core.config.named_ensembles import ensemble_options
from deepen_core.demo import member_paths
from deepen_core.members.loading import member_configs
from deepen_integrations.cli.commands import commands

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
EVERY_PAGE = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]


def blocks(language: str, page: Path) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell_commands(program: str) -> list[list[str]]:
    """The commands of all pages, each once."""
    lines = [line for page in EVERY_PAGE for block in blocks("bash", page) for line in block.splitlines()]
    found = [tuple(shlex.split(line, comments=True)) for line in lines]
    return [list(words) for words in dict.fromkeys(found) if words[:1] == (program,)]


def quoted(page: Path) -> list[tuple[str, str]]:
    """Snippets, each with the output that is quoted right after it."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n((?:(?!^```$).)*?)^```\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def with_folders(snippet: str, folders: dict[str, str]) -> str:
    """A snippet with folders in place of ids of the hub."""
    for model, folder in folders.items():
        snippet = snippet.replace(f'"{model}"', repr(folder))
    return snippet


def on_the_demo(snippet: str) -> str:
    named = [model for model in MODELS.values() if f'"{model}"' in snippet]
    return with_folders(snippet, dict(zip(named, map(str, member_paths()), strict=False)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "snippet",
    [snippet for page in PAGES for snippet in blocks("python", page)],
    ids=lambda code: code.strip().splitlines()[-1],
)
def test_snippets_run_in_a_fresh_process(programs, snippet, tmp_path):
    run = programs.run(tmp_path, code=on_the_demo(snippet), warnings={})
    assert run.code == 0, run.errors
    assert run.output.strip()


@pytest.mark.parametrize(
    ("snippet", "output"),
    [
        pytest.param(*both, marks=REAL, id=f"{page.stem}: {both[0].strip().splitlines()[-2]}")
        for page in PAGES
        for both in quoted(page)
    ],
)
def test_what_is_quoted_is_what_the_real_pair_says(programs, snippet, output, tmp_path):
    folders = {model: real(folder) for folder, model in MODELS.items()}
    run = programs.run(tmp_path, code=with_folders(snippet, folders), warnings={})
    assert run.code == 0, run.errors
    assert run.output.strip() == output.strip()


def test_the_readme_quotes_both_frameworks_on_a_real_pair():
    """Five lines each, the import apart from blank lines."""
    told = [snippet for snippet, _ in quoted(README)]
    assert [re.search(r"deepen_integrations\.(\w+)", snippet)[1] for snippet in told] == ["langchain", "llama_index"]
    for snippet in told:
        assert sum(model in snippet for model in MODELS.values()) == 2
        assert len([line for line in snippet.splitlines() if line]) == 5


def test_the_readme_is_one_that_people_read():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


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
    assert len([snippet for page in PAGES for snippet in blocks("python", page)]) >= 40
    assert shell_commands("make")
    assert shell_commands("deepen")


def anchors(page: Path) -> set[str]:
    """What a page can be linked to by, as GitHub and MkDocs name its headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), f"{target}#{anchor}"


@pytest.mark.parametrize(
    "name", ["README.md", "fusion", "decoding", "evaluation", "demo", "models", "performance", "ray"]
)
def test_tables_of_the_pages_are_what_was_measured(name):
    from benchmarks import page

    place = name if name.endswith(".md") else f"docs/{name}.md"
    text = (ROOT / place).read_text(encoding="utf-8")
    assert page.filled(text, page.PAGES[place]()) == text, "run: python -m benchmarks.page"


def test_every_sampling_option_is_in_the_table():
    lines = (ROOT / "docs" / "options.md").read_text(encoding="utf-8").splitlines()
    first_cells = "".join(line.split("|")[1] for line in lines if line.startswith("|"))
    assert set(SamplingParams.model_fields) <= set(re.findall(r"`(\w+)`", first_cells))
