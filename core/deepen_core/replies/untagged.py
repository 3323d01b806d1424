"""Tool calls at the beginning of an answer that lack their tag, as some small models write them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

FENCES = {"```json": "```", "```": "```", "<tools>": "</tools>", "": ""}
"""What may stand around such a call: the end of each beginning."""
ARGUMENTS = ("arguments", "parameters")
"""Names of the field for a call's arguments."""
_SPACE = r"[ \n\r\t]*"
_NAMED = re.compile(rf'\{{{_SPACE}"name"{_SPACE}:{_SPACE}("(?:[^"\\]|\\.)*")')
_BEGUN = '{"name":"'


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
        if place is not None and named is not None and json.loads(named[1], strict=False) in names:
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
        spelled = ("".join(json.dumps(name, ensure_ascii=False).split()) for name in names)
        if _BEGUN.startswith(begun) or any((_BEGUN[:-1] + name).startswith(begun) for name in spelled):
            return True
    return False


def untagged_rules(names: Collection[str], fences: Collection[str] = tuple(FENCES)) -> str:
    """Returns the regular expression for beginnings of such calls, inside slashes, up to the end of the name.

    Args:
        names: The tools' names.
        fences: Keys of `FENCES`.
    """
    spelled = "|".join(_literal(json.dumps(name, ensure_ascii=False)) for name in names)
    return rf'{_SPACE}({"|".join(map(_literal, fences))}){_SPACE}\{{{_SPACE}"name"{_SPACE}:{_SPACE}({spelled})'


def _literal(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


def _brace(text: str, begin: str) -> int | None:
    """Returns the place of the brace that follows a beginning, if it does."""
    said = text.lstrip()
    rest = said[len(begin) :].lstrip()
    return len(text) - len(rest) if said.startswith(begin) and rest.startswith("{") else None
