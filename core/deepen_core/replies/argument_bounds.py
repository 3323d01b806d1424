"""Bounds on texts and lists in arguments of tool calls whose schemas set none: a lost model writes on and on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from deepen_core.config import SamplingParams
from deepen_core.constraints.json_schema import parts_of

_CHARACTERS_PER_TOKEN = 2  # prose has four, so that a text of the greatest length takes half of the answer's tokens
_TOKENS_PER_ITEM = 8
_SHORTEST_PATTERN = 256  # characters: no pattern or format in use needs more
_TYPED = frozenset({"$ref", "anyOf", "oneOf", "allOf", "enum", "const", "not", "if"})
"""Keywords by which other parts of the schema, or none, say how long a value is."""


@dataclass(frozen=True)
class ArgumentBounds:
    """The greatest lengths of what a schema leaves unbounded."""

    characters: int
    """Of a string."""
    items: int
    """Of an array, or of an object with free keys."""

    @classmethod
    def from_params(cls, params: SamplingParams) -> Self | None:
        """Returns the bounds of a request; None if it lifts them."""
        if params.max_argument_length == 0:
            return None
        tokens = params.answer_tokens
        characters = params.max_argument_length or _CHARACTERS_PER_TOKEN * tokens
        return cls(characters, max(1, tokens // _TOKENS_PER_ITEM))

    def bounded(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a schema with these bounds wherever it has none of its own."""
        found = copy.deepcopy(dict(schema))
        for _, part in [*parts_of(found)]:
            if _TYPED.isdisjoint(part):
                self._bound(part)
        return found

    def _bound(self, part: dict[str, Any]) -> None:
        kinds = part.get("type", ["string", "array"])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list):
            return  # not a schema: if it counts, it is refused when the grammar is made
        if "string" in kinds and "maxLength" not in part:
            shaped = not {"pattern", "format"}.isdisjoint(part)
            most = max(self.characters, _SHORTEST_PATTERN) if shaped else self.characters
            if _least(part, "minLength") <= most:
                part["maxLength"] = most
        if (
            "array" in kinds
            and not {"maxItems", "prefixItems"} & part.keys()
            and _least(part, "minItems") <= self.items
        ):
            part["maxItems"] = self.items
        if "object" in kinds and "maxProperties" not in part:
            self._bound_keys(part)

    def _bound_keys(self, part: dict[str, Any]) -> None:
        named, required = part.get("properties"), part.get("required", [])
        if not (isinstance(named, dict | None) and isinstance(required, list)):
            return  # as above
        others = part.get("additionalProperties", named is None)
        # Optional keys cannot be counted.
        countable = all(name in required for name in named or ())
        if others is not False and countable and _least(part, "minProperties") <= self.items:
            part["maxProperties"] = len(named or ()) + self.items
        if others is True:
            part["additionalProperties"] = {"maxLength": self.characters, "maxItems": self.items}

    def warnings(self, tool: str, arguments: Mapping[str, Any]) -> Iterator[str]:
        """Yields a warning for each argument with a text or list as long as it may be, which may have been cut off."""
        for name, value in arguments.items():
            if any(map(self._is_full, _values(value))):
                yield (
                    f"The argument {name!r} of a call of {tool!r} has the greatest length allowed ({self.characters} "
                    f"characters, {self.items} items), so it may be incomplete: raise max_argument_length or "
                    "max_new_tokens, or set maxLength or maxItems in the tool's schema."
                )

    def _is_full(self, value: Any) -> bool:
        if isinstance(value, str):
            return len(value) == self.characters
        return isinstance(value, list) and len(value) == self.items


def _least(part: Mapping[str, Any], keyword: str) -> int:
    least = part.get(keyword, 0)
    return least if isinstance(least, int) else 0


def _values(value: Any) -> Iterator[Any]:
    """Yields a value and everything in it."""
    inside = [value]
    while inside:
        value = inside.pop()
        yield value
        inside += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
