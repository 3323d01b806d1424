"""Dependencies point one way: the contracts in pyproject.toml hold."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

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
    """CONTRIBUTING.md has the layers as pyproject.toml has them."""
    spec = importlib.util.spec_from_file_location("draw_house", ROOT / "docs" / "draw_house.py")
    draw_house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_house)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert draw_house.filled(page) == page, "run: python docs/draw_house.py"
    drawn = set(draw_house.drawing().split())
    packages = {
        path.stem for path in (ROOT / "core" / "deepen_core").iterdir() if not path.stem.startswith(("_", "py"))
    }
    assert packages - drawn == {"anchors", "inverse", "relative", "vocabulary"}
    for name in re.findall(r"`((?:core|deepen_integrations|docs|tests)/[\w/.<>]+)`", page):
        assert "<" in name or (ROOT / name).exists(), name
