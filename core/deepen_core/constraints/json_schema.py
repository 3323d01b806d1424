"""Prepares a JSON schema for decoding, or names the part that cannot be followed."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from deepen_core.constraints.limits import check_schema
from deepen_core.errors import SamplingError

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_JOINING = {"$ref", "anyOf", "oneOf"}
_OPENING = {"additionalProperties", "patternProperties"}
_IDLE = {"uniqueItems": False, "unevaluatedProperties": True, "unevaluatedItems": True}
_WAYS_OUT = {
    "one value may match several": " Use anyOf, or tell them apart by type, or by a required property with a const.",
    "Unimplemented keys": ": leave them out, and check them in the finished answer.",
    "are not disjoint": ": let no key match both.",
}
"""What a caller can do, by a part of llguidance's complaint."""
_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
_UUID = re.compile("uuid([1-8])")  # pydantic's name for a version
_UUID_PATTERN = "^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"
_BLAMING_S = 0.5  # how long the part at fault is looked for
_OF_URIS = "#/%:~!$&'()*+,;=@?"


def checked_schema(schema: dict[str, Any], problem: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Checks a schema and prepares it.

    Args:
        schema: A JSON schema.
        problem: Returns what is wrong with a schema as a whole, or an empty string.

    Returns:
        The schema with its references as ASCII URIs and without keywords that have no effect. Objects that name their
        properties get no other ones unless the schema allows them: an unsure model would keep adding more.

    Raises:
        SamplingError: If it cannot be followed, with the JSON path of the part at fault as far as it can be found.
    """
    schema = prepared(schema, problem)
    for path, part in parts_of(schema):
        if said := too_many_keys(part):
            raise SamplingError(f"The schema cannot be followed at {path}: {said}")
    if said := problem(schema):
        where = _blamed(schema, problem, said)
        raise SamplingError(f"The schema cannot be followed at {where}: {said}{_way_out(said)}")
    closed = _closed(schema)
    return schema if problem(closed) else closed


@lru_cache
def _follows_format(name: str, problem: Callable[[dict[str, Any]], str]) -> bool:
    """Whether decoding can follow a format: not all releases of llguidance know every one of these."""
    return name in _FORMATS and not problem({"type": "string", "format": name})


def prepared(schema: dict[str, Any], problem: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Returns a copy with references as ASCII URIs, and without keywords that have no effect.

    By the standard, `format` is an annotation. Those that decoding knows it follows nevertheless, and all others, of
    which pydantic and OpenAPI have many (path, password, binary), have no effect.

    Args:
        schema: A JSON schema.
        problem: As for `checked_schema`.

    Raises:
        SamplingError: For a reference to another document, and for a schema beyond the limits of `limits`.
    """
    check_schema(schema, _children)
    schema = copy.deepcopy(schema)
    for path, part in parts_of(schema):
        reference = part.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise SamplingError(
                f"The schema cannot be followed at {path}: {reference!r} lies outside of the schema; put what it "
                "refers to under $defs."
            )
        for keyword, value in _IDLE.items():
            if part.get(keyword) is value:
                del part[keyword]
        if isinstance(reference, str):
            part["$ref"] = quote(reference, safe=_OF_URIS)
        if "format" in part and not _follows_format(str(part["format"]), problem):
            found = _UUID.fullmatch(str(part.pop("format")))
            if found and "pattern" not in part:
                part["pattern"] = _UUID_PATTERN.format(found[1])
    return schema


def too_many_keys(part: dict[str, Any]) -> str:
    """Returns what is wrong with the number of keys of an object, which decoding would not count rightly."""
    least, named = part.get("minProperties"), part.get("required", ())
    if isinstance(least, int) and isinstance(named, (list, tuple)) and least > len(named) + 1:
        return f"minProperties is {least}, but a key without a name may be given twice: list the keys as required."
    return ""


def _way_out(said: str) -> str:
    return next((advice for sign, advice in _WAYS_OUT.items() if sign in said), "")


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema whose objects have only the properties that they name.

    A schema that describes an object in several places is unchanged, as each would exclude the properties of the
    others.
    """
    closed = copy.deepcopy(schema)
    parts = [part for _, part in parts_of(closed)]
    if any("allOf" in part or ("properties" in part and not _JOINING.isdisjoint(part)) for part in parts):
        return schema
    for part in parts:
        if "properties" in part and _OPENING.isdisjoint(part):
            part["additionalProperties"] = False
    return closed


def _blamed(schema: dict[str, Any], problem: Callable[[dict[str, Any]], str], said: str) -> str:
    """Returns the path of the smallest part that has the same problem on its own, as far as it is found in time."""
    shared: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    path, part = "$", schema
    end = time.perf_counter() + _BLAMING_S
    while True:
        for where, child in _children(part):
            if time.perf_counter() > end:
                return path
            if isinstance(child, dict) and problem({**shared, **child}) == said:
                path, part = path + where, child
                break
        else:
            return path


def parts_of(schema: dict[str, Any], path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a schema and every schema in it, each with its path; what the reader takes out is not read on."""
    yield path, schema
    for where, child in _children(schema):
        if isinstance(child, dict):
            yield from parts_of(child, path + where)


def _children(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in _NAMED:
        if isinstance(schema.get(key), dict):
            yield from ((f".{key}{_member(name)}", child) for name, child in schema[key].items())
    for key in _LISTED:
        if isinstance(schema.get(key), list):
            yield from ((f".{key}[{place}]", child) for place, child in enumerate(schema[key]))
    for key in _SINGLE:
        if key in schema:
            yield f".{key}", schema[key]


def _member(name: str) -> str:
    return f".{name}" if name.isidentifier() else f"[{name!r}]"
