"""Widens a JSON schema where decoding cannot follow it, and says where."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from deepen_core.constraints.json_schema import parts_of, prepared, too_many_keys

Problem = Callable[[dict[str, Any]], str]

_UNHELD = (
    "uniqueItems contains minContains maxContains propertyNames dependentRequired dependentSchemas dependencies not if "
    "then else unevaluatedProperties unevaluatedItems $dynamicRef"
).split()
"""Keywords that decoding does not know. Without one, a schema allows more."""
_COUNTS = ("minProperties", "maxProperties")
_NOTHING: dict[str, Any] = {"enum": []}


@dataclass
class Relaxation:
    """A schema that decoding can follow, as far as relaxing helps.

    Args:
        given: The schema as it was given.
        problem: Returns what is wrong with a schema as a whole, or an empty string.

    Attributes:
        schema: A copy that allows everything that the given one does, and has no keyword that is known to fail.
        relaxed: What was left out: keyword and JSON path.
    """

    given: dict[str, Any]
    problem: Problem
    schema: dict[str, Any] = field(init=False)
    relaxed: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.schema = prepared(self.given, self.problem)
        for path, part in parts_of(self.schema):
            _state_keys(part, self.schema)
            self._leave_out(path, part, list(self._failing(part)))
        if self.problem(self.schema):
            self._open_ambiguous()

    def _failing(self, part: dict[str, Any]) -> Iterator[str]:
        yield from (keyword for keyword in _UNHELD if keyword in part)
        if "pattern" in part and self.problem({"type": "string", "pattern": part["pattern"]}):
            yield "pattern"
        names = part.get("patternProperties")
        if isinstance(names, dict) and self.problem(
            {"type": "object", "patternProperties": dict.fromkeys(names, True)}
        ):
            yield "patternProperties"
        counted = [keyword for keyword in _COUNTS if keyword in part]
        if counted:
            alone = {
                "properties": dict.fromkeys(part.get("properties", ()), True),
                "required": part.get("required", []),
            }
            counts = {keyword: part[keyword] for keyword in counted}
            if too_many_keys(part) or self.problem({"type": "object", **alone, **counts}):
                yield from counted

    def _leave_out(self, path: str, part: dict[str, Any], keywords: list[str]) -> None:
        for keyword in keywords:
            del part[keyword]
            self.relaxed.append(f"{keyword} at {path}")
            if keyword == "patternProperties":
                part["additionalProperties"] = True  # else it would forbid these keys

    def _open_ambiguous(self) -> None:
        """Lets values match several options of a `oneOf`, the innermost ones first.

        Decoding does not look through references to tell the options apart, so they are resolved before.
        """
        shared: dict[str, Any] = {name: self.schema[name] for name in ("$defs", "definitions") if name in self.schema}
        for path, part in reversed(list(parts_of(self.schema))):
            if "oneOf" not in part or not self._ambiguous({**shared, "oneOf": part["oneOf"]}):
                continue
            inlined = [copy.deepcopy(_resolved(option, self.schema)) for option in part["oneOf"]]
            if not self._ambiguous({**shared, "oneOf": inlined}):
                part["oneOf"] = inlined
                continue
            options = {"anyOf": part.pop("oneOf")}
            part.update({"allOf": [*part.get("allOf", ()), options]} if "anyOf" in part else options)
            self.relaxed.append(f"oneOf at {path}")

    def _ambiguous(self, schema: dict[str, Any]) -> bool:
        return "several options" in self.problem(schema)


def _state_keys(part: dict[str, Any], root: dict[str, Any]) -> None:
    """States in other words, where there are some, what decoding does not know: the keys of a mapping, and nothing."""
    if part.get("not") in ({}, True):
        part.clear()
        part.update(_NOTHING)
    names = _resolved(part.get("propertyNames"), root)
    if not isinstance(names, dict) or not {"properties", "patternProperties"}.isdisjoint(part):
        return
    values = part.get("additionalProperties", True)
    keys = [names["const"]] if "const" in names else names.get("enum")
    idle = {"type", "title", "description", "const", "enum"}
    if isinstance(keys, list) and names.keys() <= idle:
        stated: dict[str, Any] = {"properties": {key: values for key in keys if isinstance(key, str)}}
    elif isinstance(names.get("pattern"), str) and names.keys() <= idle | {"pattern"}:
        stated = {"patternProperties": {names["pattern"]: values}}
    elif names.keys() <= {"type", "title", "description"} and names.get("type", "string") == "string":
        stated = {}
    else:
        return
    del part["propertyNames"]
    part.update(stated)
    if stated:
        part["additionalProperties"] = False


def _resolved(schema: Any, root: dict[str, Any]) -> Any:
    """Returns the definition that a schema refers to, if it does no more than that."""
    reference = schema.get("$ref") if isinstance(schema, dict) and len(schema) == 1 else None
    if not isinstance(reference, str):
        return schema
    for collection in ("$defs", "definitions"):
        begin = f"#/{collection}/"
        if reference.startswith(begin):
            return root.get(collection, {}).get(reference.removeprefix(begin))
    return None
