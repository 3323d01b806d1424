"""A JSON schema made ready to be followed, or the part of it that is to blame if it cannot be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from deepen_core.errors import SamplingError

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_JOINING = {"$ref", "anyOf", "oneOf"}
_OPENING = {"additionalProperties", "patternProperties"}
_IDLE = {"uniqueItems": False, "unevaluatedProperties": True, "unevaluatedItems": True}
_OF_URIS = "#/%:~!$&'()*+,;=@?"


def checked_schema(schema: dict[str, Any], problem: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Checks a schema.

    Args:
        schema: A JSON schema.
        problem: What is wrong with a schema as a whole, nothing if it is fine.

    Returns:
        The same with its references written as URIs are, in ASCII, and without what asks for nothing. Objects that
        name their properties have no others unless the schema says so: a model that is unsure would add more and more.

    Raises:
        SamplingError: If it cannot be followed, naming the JSON path of the part to blame as far as that can be told.
    """
    schema = copy.deepcopy(schema)
    for path, part in _parts(schema, "$"):
        if said := _told(part):
            raise SamplingError(f"The schema cannot be followed at {path}: {said}")
        for keyword, value in _IDLE.items():
            if part.get(keyword) is value:
                del part[keyword]
        if isinstance(part.get("$ref"), str):
            part["$ref"] = quote(part["$ref"], safe=_OF_URIS)
    if said := problem(schema):
        raise SamplingError(f"The schema cannot be followed at {_blamed(schema, problem, said)}: {said}")
    closed = _closed(schema)
    return schema if problem(closed) else closed


def _told(part: dict[str, Any]) -> str:
    """What is known of a part before it is compiled."""
    reference = part.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        return f"{reference!r} lies outside of the schema; put what it refers to under $defs."
    least = part.get("minProperties")
    named = part.get("required", ())
    if isinstance(least, int) and isinstance(named, (list, tuple)) and least > len(named) + 1:
        return f"minProperties is {least}, but of keys without a name one may be given twice: list them as required."
    return ""


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose objects have only the properties that they name.

    It stays as it is where an object is described in several places, each of which would exclude what the others name.
    """
    closed = copy.deepcopy(schema)
    parts = [part for _, part in _parts(closed, "$")]
    if any("allOf" in part or ("properties" in part and not _JOINING.isdisjoint(part)) for part in parts):
        return schema
    for part in parts:
        if "properties" in part and _OPENING.isdisjoint(part):
            part["additionalProperties"] = False
    return closed


def _blamed(schema: dict[str, Any], problem: Callable[[dict[str, Any]], str], said: str) -> str:
    """The path of the smallest part that has the same wrong with it on its own."""
    shared: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    path, part = "$", schema
    while True:
        for where, child in _children(part):
            if isinstance(child, dict) and problem({**shared, **child}) == said:
                path, part = path + where, child
                break
        else:
            return path


def _parts(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a schema and every schema in it, with its path."""
    yield path, schema
    for where, child in _children(schema):
        if isinstance(child, dict):
            yield from _parts(child, path + where)


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
