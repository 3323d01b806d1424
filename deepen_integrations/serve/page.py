"""The page at `/`: chat with an ensemble and its members in a browser. One file that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from deepen_core.tracing.drawing import COLOURS
from deepen_core.tracing.style import CSS


class Page:
    """The page and its headers, made once.

    Its policy names the page's own script and style by their hashes, so that a browser runs no others, whatever a model
    may have written.
    """

    def __init__(self) -> None:
        template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        self._text = template.replace("{{css}}", CSS).replace("{{colours}}", json.dumps(COLOURS))
        self._headers = {
            "content-security-policy": "; ".join(
                [
                    "default-src 'none'",
                    "connect-src 'self'",
                    "img-src data:",
                    f"script-src {_hash_of(self._text, 'script')}",
                    f"style-src {_hash_of(self._text, 'style')}",
                    "base-uri 'none'",
                    "form-action 'none'",
                    "frame-ancestors 'none'",
                ]
            ),
            "cache-control": "no-cache",
            "cross-origin-opener-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    async def answer(self, _request: Request) -> Response:
        """Answers `GET /`."""
        return HTMLResponse(self._text, headers=self._headers)


def _hash_of(page: str, tag: str) -> str:
    """Returns the hash of what is between the only tags of a name, as a content security policy writes it."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
