"""Text as it may be shown in a terminal: nothing in it moves the cursor, sets the title or reverses other text."""

from __future__ import annotations

import re

# C0 and C1 controls but for newline and tab, DEL, lone surrogates, and the marks that turn or hide text.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Returns a text with its control characters as escapes, such as `\x1b`; newlines and tabs stay."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
