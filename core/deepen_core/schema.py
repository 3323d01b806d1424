"""Which part of a JSON schema is to blame when it cannot be followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from deepen_core.errors import SamplingError

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")


def check_schema(schema: dict[str, Any], problem: Callable[[dict[str, Any]], str]) -> None:
    """Refuses a schema that cannot be followed.

    Args:
        schema: A JSON schema.
        problem: What is wrong with a schema as a whole, nothing if it is fine.

    Raises:
        SamplingError: Naming the JSON path of the part to blame, as far as it can be told.
    """
    for path, part in _parts(schema, "$"):
        if said := _told(part):
            raise SamplingError(f"json_schema cannot be followed at {path}: {said}")
    if said := problem(schema):
        raise SamplingError(f"json_schema cannot be followed at {_blamed(schema, problem, said)}: {said}")


def _told(part: dict[str, Any]) -> str:
    """What is known of a part before it is compiled."""
    reference = part.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        return f"{reference!r} lies outside of the schema; put what it refers to under $defs."
    least = part.get("minProperties")
    if isinstance(least, int) and least > 1 and least > len(part.get("required", ())):
        return f"minProperties is {least}, but nothing keeps a model from giving one key twice; name the keys instead."
    return ""


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
            yield from ((f".{key}.{name}", child) for name, child in schema[key].items())
    for key in _LISTED:
        if isinstance(schema.get(key), list):
            yield from ((f".{key}[{place}]", child) for place, child in enumerate(schema[key]))
    for key in _SINGLE:
        if key in schema:
            yield f".{key}", schema[key]
