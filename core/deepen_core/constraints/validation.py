"""Checks a finished value against its schema, where decoding could not follow all of it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import regex
from jsonschema.exceptions import ValidationError
from referencing import Registry

from deepen_core.constraints.json_schema import parts_of
from deepen_core.errors import brief

CHECK_S = 1.0
"""How long one value is checked, in seconds; a pattern notices the end up to two seconds later."""
_NO_DOCUMENTS: Registry[Any] = Registry()  # jsonschema's own would ask the network
_UNBOUNDED = ("patternProperties", "unevaluatedProperties")  # together, jsonschema searches patterns without limit
_current = threading.local()


class SchemaCheck:
    """Tells what a value breaks of a schema. The dialect is the one that the schema names, 2020-12 by default.

    Patterns may need exponential time, and so may references. Both end after `CHECK_S`, as a problem.

    Args:
        schema: The schema. Patterns that the `regex` module does not know are left out.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        schema = copy.deepcopy(schema)
        parts = [part for _, part in parts_of(schema)]
        unbounded = all(any(keyword in part for part in parts) for keyword in _UNBOUNDED)
        for part in parts:
            if "pattern" in part and not _is_regex(part["pattern"]):
                del part["pattern"]
            if isinstance(part.get("patternProperties"), dict) and not all(map(_is_regex, part["patternProperties"])):
                del part["patternProperties"]
                part.pop("additionalProperties", None)
            if unbounded:
                part.pop("unevaluatedProperties", None)
        dialect = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        rules = dialect.VALIDATORS.items()
        references = {name: _in_time(rule) for name, rule in rules if name.lower().endswith("ref")}
        bounded = jsonschema.validators.extend(dialect, {**references, **_PATTERN_RULES})
        self._validator = bounded(schema, registry=_NO_DOCUMENTS)

    def problem(self, value: Any) -> str:
        """Returns the worst problem of a value, with its JSON path, or an empty string."""
        _current.end = time.perf_counter() + CHECK_S
        try:
            worst = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except TimeoutError:
            return f"it could not be checked within {CHECK_S:g} s: simplify the patterns or references of its schema"
        except Exception as problem:  # noqa: BLE001  a schema that its dialect does not allow
            return f"it could not be checked ({brief(problem)})"
        return "" if worst is None else f"at {worst.json_path}, {' '.join(worst.message.split())[:300]}"


def _left() -> float:
    """Returns how many seconds this check has left.

    Raises:
        TimeoutError: If there are none.
    """
    left: float = _current.end - time.perf_counter()
    if left <= 0:
        raise TimeoutError
    return left


def _found(pattern: str, text: str) -> bool:
    return regex.search(pattern, text, timeout=_left(), concurrent=True) is not None


def _in_time(rule: Any) -> Any:
    """Returns a keyword's rule that ends when the time has passed."""

    def bounded(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _left()
        yield from rule(validator, value, instance, schema) or ()

    return bounded


# As jsonschema has them, which searches with Python's `re`, without a limit.


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _found(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, rules: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, rule in rules.items():
        for name, value in instance.items():
            if _found(pattern, name):
                yield from validator.descend(value, rule, path=name, schema_path=pattern)


def _additional_properties(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extras = [name for name in instance if name not in named and not any(_found(p, name) for p in patterns)]
    if validator.is_type(rule, "object"):
        for name in extras:
            yield from validator.descend(instance[name], rule, path=name)
    elif not rule and extras:
        yield ValidationError(f"Additional properties are not allowed ({', '.join(map(repr, extras))})")


_PATTERN_RULES: Mapping[str, Any] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}


def _is_regex(pattern: Any) -> bool:
    try:
        regex.compile(pattern)
    except (regex.error, TypeError):
        return False
    return True
