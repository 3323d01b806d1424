"""The documentation's pages: each is in the menu and two clicks from the first, and troubleshooting is complete.

`make docs` builds them, where every broken link is an error.
"""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml

from deepen_core import errors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def links(page: str) -> set[str]:
    """The pages that a page's text leads to."""
    text = (DOCS / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?![a-z]+:)([^)#\s]+\.md)", text)
    places = {(DOCS / page).parent.joinpath(target).resolve() for target in targets}
    return {place.relative_to(DOCS).as_posix() for place in places if DOCS in place.parents}


def test_every_page_is_in_the_menu_once():
    """Of two levels, which a page shows whole: so each is at most two clicks away by the menu."""
    listed = []
    for entry in SITE["nav"]:
        ((_, below),) = entry.items()
        listed += [below] if isinstance(below, str) else [page for one in below for page in one.values()]
    assert sorted(listed) == sorted(PAGES)
    assert listed[0] == "index.md"


def test_every_page_is_two_clicks_from_the_first():
    """By the links in the text, without the menu."""
    once = links("index.md")
    twice = {page for first in once for page in links(first)}
    assert {"index.md"} | once | twice >= PAGES


def test_a_warning_ends_the_build():
    assert SITE["strict"] is True
    assert SITE["theme"]["font"] is False
    assert set(SITE["validation"]["links"].values()) == {"warn"}
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make docs" in ci.splitlines()


def test_troubleshooting_has_an_entry_for_each_class_and_no_other():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### `(\w+)`\n\n(.+)", page, re.MULTILINE)
    classes = [name for name, one in vars(errors).items() if inspect.isclass(one) and one.__module__ == errors.__name__]
    assert sorted(name for name, _ in entries) == sorted(classes)
    assert all(len(text.split()) >= 5 for _, text in entries)


def description():
    """The README as a package index gets it, and the repository's address."""
    plugins = pytest.importorskip("hatchling.plugin.manager")
    metadata = importlib.import_module("hatchling.metadata.core").ProjectMetadata(str(ROOT), plugins.PluginManager())
    return metadata.core.readme, metadata.core.urls["Source"]


def test_links_and_pictures_of_the_readme_work_on_a_package_index():
    """They are absolute there, and lead into the repository."""
    text, source = description()
    given = re.findall(r"\]\((?![a-z]+:|#)([^)\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text)
    assert len(given) > 10
    for target in given:
        kind = "raw" if target.endswith(".svg") else "blob"
        assert ("!" if kind == "raw" else "", f"{source}/{kind}/main/{target}") in links
    assert all(re.match("[a-z]+:", target) for _, target in links)


def test_the_address_of_the_repository_is_in_one_file():
    _, source = description()
    files = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "mkdocs.yml", "hatch_build.py")]
    for file in [*files, *DOCS.rglob("*.md"), *DOCS.rglob("*.py"), *(ROOT / "examples").glob("*.*")]:
        assert source not in file.read_text(encoding="utf-8"), file
