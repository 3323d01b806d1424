"""Tool calls at the beginning of an answer that lack their tag, as some small models write them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

FENCES = {"```json": "```", "```": "```", "<tools>": "</tools>", "": ""}
"""What may stand around such a call: the end of each beginning."""
ARGUMENTS = ("arguments", "parameters")
"""Names of the field for a call's arguments."""
_SPACE = r"[ \n\r\t]*"  # in JSON
_AROUND = r"[\s\x1c-\x1f]*"  # what `str.lstrip` takes away
_NAMED = re.compile(rf'\{{{_SPACE}"name"{_SPACE}:{_SPACE}("(?:[^"\\]|\\.)*")')
_BEGUN = '{"name":'


def untagged_call(text: str, names: Collection[str]) -> tuple[str, int] | None:
    """Finds a call at the beginning of a text.

    Args:
        text: The text.
        names: The tools that may be called.

    Returns:
        What ends the text around the call, and the place of its brace; None if the text does not begin as a call of a
        known tool does.
    """
    for begin, end in FENCES.items():
        place = _brace(text, begin)
        named = None if place is None else _NAMED.match(text, place)
        # As it is spelled, like the grammar: escapes in a name are not held, so it is not one of a tool.
        if place is not None and named is not None and named[1] in map(spelled, names):
            return end, place
    return None


def may_become_call(text: str, names: Collection[str]) -> bool:
    """Whether more text could make this the beginning of a call of a known tool."""
    said = text.lstrip()
    for begin in FENCES:
        if begin.startswith(said):
            return True
        place = _brace(text, begin)
        if place is None:
            if said.startswith(begin) and not said[len(begin) :].strip():
                return True
            continue
        begun = "".join(text[place:].split())
        if any((_BEGUN + "".join(spelled(name).split())).startswith(begun) for name in names):
            return True
    return False


def untagged_rules(names: Collection[str], fences: Collection[str] = tuple(FENCES)) -> str:
    """Returns the regular expression for beginnings of such calls, inside slashes, up to the end of the name.

    Args:
        names: The tools' names.
        fences: Keys of `FENCES`.
    """
    begins, called = ("|".join(map(_literal, texts)) for texts in (fences, map(spelled, names)))
    return rf'{_AROUND}({begins}){_AROUND}\{{{_SPACE}"name"{_SPACE}:{_SPACE}({called})'


def spelled(name: str) -> str:
    """Returns a name as calls spell it."""
    return json.dumps(name, ensure_ascii=False)


def _literal(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


def _brace(text: str, begin: str) -> int | None:
    """Returns the place of the brace that follows a beginning, if it does."""
    said = text.lstrip()
    rest = said[len(begin) :].lstrip()
    return len(text) - len(rest) if said.startswith(begin) and rest.startswith("{") else None
