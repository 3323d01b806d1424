"""Draws the layers of the engine, from the import contract in pyproject.toml, into docs/how_it_works.md.

Run with `python docs/draw_house.py` after the contract or the docstring of a package has changed; a test compares.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from importlib import import_module
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "how_it_works.md"
_BEGIN, _END = "<!-- house: begin -->", "<!-- house: end -->"
_WIDTH = 100


def layers() -> list[list[str]]:
    """The packages of each layer of the engine, the highest layer first; above `ensemble` are only old names."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    contracts = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    house = next(contract for contract in contracts if contract["type"] == "layers")
    found = [[name.strip() for name in re.split(r"[|:]", layer)] for layer in house["layers"]]
    return found[found.index(["ensemble"]) :]


def purpose(name: str) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    path = ROOT / "core" / "deepen_core" / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.(?:\s|$)", text.replace("\n", " "))[0]


def drawing() -> str:
    """The layers as boxes; each may import from those below it."""
    edge = "+" + "-" * (_WIDTH - 2) + "+"
    lines = [edge]
    for layer in layers():
        for name in layer:
            told = textwrap.wrap(purpose(name), _WIDTH - 17)
            lines += [
                f"| {label:<12} {line:<{_WIDTH - 17}} |" for label, line in zip_longest([name], told, fillvalue="")
            ]
        lines.append(edge)
    return "\n".join(lines)


def filled(page: str) -> str:
    """A page with the drawing between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n```text\n{drawing()}\n```\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
