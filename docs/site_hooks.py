"""What MkDocs does not do by itself: the repository's address, links out of `docs/`, and formulas as MathML.

MkDocs calls these functions by their names (`hooks:` in mkdocs.yml). Formulas are converted when the site is built, so
that pages need no script from another server.
"""

from __future__ import annotations

import html
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)([^)\s]*\))")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def repository() -> str:
    """The repository's address, which only pyproject.toml states."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Source"]).rstrip("/")


def on_config(config: Any) -> Any:
    """Sets the address to which the icon in the page's corner leads, and the words beside it."""
    config.repo_url, config.repo_name = repository(), "Repository"
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Makes links to files outside of `docs/` lead to the repository."""
    folder = Path(page.file.abs_src_path).parent

    def outside(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if not target.exists() or (ROOT / "docs") in target.parents:
            return link[0]  # a page of the site, or a mistake, which MkDocs reports
        return f"{link[1]}{repository()}/blob/main/{target.relative_to(ROOT).as_posix()}{link[3]}"

    return _LINK.sub(outside, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Converts formulas to MathML."""
    return _FORMULA.sub(_mathml, html)


def _mathml(formula: re.Match[str]) -> str:
    block = formula[1] == "div"
    return convert(html.unescape(formula[3]), display="block" if block else "inline")
