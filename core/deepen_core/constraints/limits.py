"""The largest schemas and grammars that are compiled: larger ones would end the process, or take minutes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from deepen_core.config.constraints import MAX_CHARACTERS
from deepen_core.errors import SamplingError

MAX_PARTS = 10_000
"""Schemas inside a schema, itself included."""
MAX_DEPTH = 500
"""Levels of a schema, references followed."""
MAX_OPTIONAL = 500
"""Optional properties of one object. Decoding keeps four states for each that may come next, at most 2,000 in all."""
MAX_RULES = 2000
"""Rules of a Lark grammar."""
_LEAST, _MOST = -(2**63), 2**64 - 1
_RULE = re.compile(r"^[ \t]*[?!]*[A-Za-z_][\w.-]*[^\S\n]*(?:\[[^\]\n]*\]|\{[^}\n]*\})?[^\S\n]*:", re.MULTILINE)

Children = Callable[[dict[str, Any]], Iterator[tuple[str, Any]]]


def check_size(text: str, what: str) -> None:
    """Rejects a constraint that is too long to compile.

    Args:
        text: The constraint as text.
        what: What it is, as the start of an error message.

    Raises:
        SamplingError: If it is longer than `MAX_CHARACTERS`.
    """
    if len(text) > MAX_CHARACTERS:
        raise SamplingError(
            f"{what} has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are compiled: make it smaller."
        )


def check_grammar(grammar: str) -> None:
    """Rejects a Lark grammar that is too large to compile.

    Raises:
        SamplingError: If it is longer than `MAX_CHARACTERS`, or has more than `MAX_RULES` rules.
    """
    check_size(grammar, "grammar")
    rules = len(_RULE.findall(grammar))
    if rules > MAX_RULES:
        raise SamplingError(f"grammar has {rules:,} rules, and at most {MAX_RULES:,} are compiled: make it smaller.")


def check_schema(schema: dict[str, Any], children: Children) -> None:
    """Rejects a schema that could not be compiled or decoded. It is read as a compiler reads it: each part once.

    Args:
        schema: A JSON schema.
        children: Yields what may be a schema directly inside one, with its path from there.

    Raises:
        SamplingError: If it has more than `MAX_PARTS` parts or `MAX_DEPTH` levels, an object with more than
            `MAX_OPTIONAL` optional properties, or an integer beyond 64 bits.
    """
    found = {id(schema)}
    _check_part(schema, "$")
    under_way = [("$", _inside(schema, schema, children))]
    while under_way:
        path, rest = under_way[-1]
        where, child = next(rest, ("", None))
        if child is None:
            under_way.pop()
        elif isinstance(child, dict) and id(child) not in found:
            found.add(id(child))
            path = where if where.startswith("#") else path + where
            if len(found) > MAX_PARTS:
                raise SamplingError(
                    f"The schema has more than {MAX_PARTS:,} parts, which is the limit: make it smaller, or share "
                    "parts by $ref."
                )
            if len(under_way) > MAX_DEPTH:
                raise SamplingError(
                    f"The schema has more than {MAX_DEPTH} levels, references followed, which is the limit (at "
                    f"{path[:200]}): make it flatter."
                )
            _check_part(child, path)
            under_way.append((path, _inside(child, schema, children)))


def _inside(part: dict[str, Any], root: dict[str, Any], children: Children) -> Iterator[tuple[str, Any]]:
    """Yields what is directly inside a schema, and what it refers to; that is never None."""
    reference = part.get("$ref")
    if isinstance(reference, str):
        yield reference, _target(reference, root)
    for where, child in children(part):
        yield where, True if child is None else child


def _target(reference: str, root: dict[str, Any]) -> Any:
    """Returns what a reference inside a document points to; True if that is nothing."""
    place: Any = root
    for step in unquote(reference).lstrip("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and name.isascii() and name.isdigit():
            name = int(name) if len(name) < 9 else -1  # type: ignore[assignment]
        try:
            place = place[name]
        except (LookupError, TypeError):
            return True
    return True if place is None else place


def _check_part(part: dict[str, Any], path: str) -> None:
    _check_optional(part, path)
    named = [(k, v) for k, v in part.items() if isinstance(v, (int, float)) or k in ("const", "enum")]
    for _, value in named:
        if (large := _large_in(value)) is not None:
            raise SamplingError(
                f"The schema cannot be followed at {path}: it has an integer beyond 64 bits ({_shown(large)}): give it "
                "as a string, or leave it out."
            )


def _check_optional(part: dict[str, Any], path: str) -> None:
    properties, required = part.get("properties"), part.get("required")
    if not isinstance(properties, dict) or len(properties) <= MAX_OPTIONAL:
        return
    optional = len(properties.keys() - {name for name in _listed(required) if isinstance(name, str)})
    if optional > MAX_OPTIONAL:
        raise SamplingError(
            f"The schema cannot be followed at {path}: it has {optional} optional properties, and at most "
            f"{MAX_OPTIONAL} can be decoded: list more of them as required, or group them in objects."
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _shown(large: int) -> str:
    """Returns an integer as an error tells it; Python refuses to write very large ones out."""
    return str(large) if large.bit_length() <= 256 else f"one of {large.bit_length():,} bits"


def _large_in(value: Any) -> int | None:
    """Returns an integer beyond 64 bits that a JSON value holds, if any."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, int) and not _LEAST <= one <= _MOST:
            return one
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return None
