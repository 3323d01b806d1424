"""Checks a finished value against its schema, where decoding could not follow all of it."""

from __future__ import annotations

import copy
import re
from typing import Any

import jsonschema
from referencing import Registry

from deepen_core.constraints.json_schema import parts_of
from deepen_core.errors import brief

_NO_DOCUMENTS: Registry[Any] = Registry()  # jsonschema's own would ask the network


class SchemaCheck:
    """Tells what a value breaks of a schema. The dialect is the one that the schema names, 2020-12 by default.

    Args:
        schema: The schema. Patterns that Python does not know are left out.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        schema = copy.deepcopy(schema)
        for _, part in parts_of(schema):
            if "pattern" in part and not _is_regex(part["pattern"]):
                del part["pattern"]
            if isinstance(part.get("patternProperties"), dict) and not all(map(_is_regex, part["patternProperties"])):
                del part["patternProperties"]
                part.pop("additionalProperties", None)
        dialect = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        self._validator = dialect(schema, registry=_NO_DOCUMENTS)

    def problem(self, value: Any) -> str:
        """Returns the worst problem of a value, with its JSON path, or an empty string."""
        try:
            worst = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except Exception as problem:  # noqa: BLE001  a schema that its dialect does not allow
            return f"it could not be checked ({brief(problem)})"
        return "" if worst is None else f"at {worst.json_path}, {' '.join(worst.message.split())[:300]}"


def _is_regex(pattern: Any) -> bool:
    try:
        re.compile(pattern)
    except (re.error, TypeError):
        return False
    return True
