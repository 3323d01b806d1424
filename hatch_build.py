"""The README as a package index shows it: links and pictures that lead into the repository are absolute there.

Hatchling calls this when it builds the package (`[tool.hatch.metadata.hooks.custom]`). The address is the one of
`[project.urls]`, which is stated nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+)\)")


def absolute_links(text: str, repository: str) -> str:
    """Makes relative links of a page in the repository's root absolute.

    Args:
        text: Markdown.
        repository: The address of the repository.
    """

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}{link[2]}{repository.rstrip('/')}/{kind}/main/{link[3]})"

    return _LINK.sub(absolute, text)


class ReadmeHook(MetadataHookInterface):
    """Sets the description of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """See `MetadataHookInterface.update`."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        repository = metadata["urls"]["Source"]
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute_links(text, repository)}
