"""Dependencies point one way: the contracts in pyproject.toml hold."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_imports_respect_the_layers():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_drawing_shows_the_contract():
    """The page on how it works has the layers as pyproject.toml has them."""
    spec = importlib.util.spec_from_file_location("draw_house", ROOT / "docs" / "draw_house.py")
    draw_house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_house)
    page = draw_house.PAGE.read_text(encoding="utf-8")
    assert draw_house.filled(page) == page, "run: python docs/draw_house.py"
    drawn = set(draw_house.drawing().split())
    packages = {
        path.stem for path in (ROOT / "core" / "deepen_core").iterdir() if not path.stem.startswith(("_", "py"))
    }
    assert packages - drawn == {"anchors", "inverse", "relative", "vocabulary"}
    for name in re.findall(r"`((?:core|deepen_integrations|docs|tests)/[\w/.<>]+)`", page):
        assert "<" in name or (ROOT / name).exists(), name


@pytest.mark.parametrize(
    ("module", "name", "home"),
    [
        ("relative", "relative_matrix", "fusion.deepen.relative_space"),
        ("inverse", "adamw_search", "fusion.deepen.search"),
        ("inverse", "em_search", "fusion.deepen.search"),
        ("anchors", "common_tokens", "fusion.anchors.shared_tokens"),
        ("vocabulary", "Vocabulary", "tokenization.vocabulary"),
    ],
)
def test_old_names_are_where_they_have_always_been(module, name, home):
    old, new = (importlib.import_module(f"deepen_core.{place}") for place in (module, home))
    assert getattr(old, name) is getattr(new, name)
    assert old.__all__ == [n for n in old.__all__ if hasattr(old, n)]
