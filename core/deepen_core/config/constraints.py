"""The options that constrain an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

from pydantic import BaseModel, field_validator, model_validator
from typing_extensions import Self

from deepen_core.config.base import Options
from deepen_core.errors import SamplingError

T = TypeVar("T")

CONSTRAINTS = ("json_schema", "regex", "choices", "grammar")
"""The options that constrain an answer, of which at most one may be given."""
MAX_CHARACTERS = 1_000_000
"""Of a schema as JSON, of a grammar, of a regular expression, and of all choices together."""
_DEEPEST = 128
"""Maximum depth of a schema, llguidance's own limit."""
_NEEDS_EXTRA = 'needs llguidance, which is not installed: pip install "deepen-integrations[structured]"'
HALVES = re.compile("[\ud800-\udfff]")
"""Finds halves of characters, which are lone surrogates."""
_HALF = "it holds half a character (a lone surrogate), which no answer can contain"


def can_constrain() -> bool:
    """Whether the extra `structured` is installed, which constraints need."""
    return find_spec("llguidance") is not None


def check_can_constrain(feature: str) -> None:
    """Rejects what needs the extra `structured` where that is not installed.

    Args:
        feature: What the caller asked for, at the beginning of a sentence.

    Raises:
        SamplingError: If it is not installed; it names the feature and the extra.
    """
    if not can_constrain():
        raise SamplingError(f"{feature} {_NEEDS_EXTRA}.")


def plain_schema(value: Any) -> dict[str, Any]:
    """Returns any form of JSON schema as a plain copy.

    Args:
        value: A mapping, the schema as a string, or a pydantic model class.

    Raises:
        ValueError: If it is none of these, or not plain JSON.
    """
    if isinstance(value, type) and issubclass(value, BaseModel):
        value = value.model_json_schema()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as problem:
            raise ValueError(f"this is not JSON: {problem}") from problem
    if not isinstance(value, Mapping):
        raise ValueError("give a JSON schema as a dict or a string, or a pydantic model class")
    value = _unwrapped(value)
    said = _in_json(partial(json.dumps, dict(value), allow_nan=False, ensure_ascii=False))
    _check_text(said)
    plain: dict[str, Any] = _in_json(partial(json.loads, said))
    if is_deeper(plain, _DEEPEST):
        raise ValueError(f"it has more than {_DEEPEST} levels; put its parts side by side under $defs")
    return plain


def _in_json(convert: Callable[[], T]) -> T:
    """Returns what a conversion to or from JSON does.

    Raises:
        ValueError: If the schema is not plain JSON.
    """
    try:
        return convert()
    except (TypeError, ValueError, RecursionError) as problem:
        raise ValueError(f"a schema is plain JSON, and this is not: {problem}") from problem


def _unwrapped(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the schema inside OpenAI's `{"name", "strict", "schema"}`, which `response_format` wraps once more."""
    if value.get("type") == "json_schema" and isinstance(value.get("json_schema"), Mapping):
        value = value["json_schema"]
    wraps = isinstance(value.get("schema"), Mapping) and value.keys() <= {"name", "description", "strict", "schema"}
    return value["schema"] if wraps else value


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings are nested more than `levels` deep."""
    inside = [value]
    for _ in range(levels + 1):
        inside = [
            child
            for part in inside
            if isinstance(part, (dict, list))
            for child in (part.values() if isinstance(part, dict) else part)
        ]
        if not inside:
            return False
    return True


def _check_text(*texts: str) -> None:
    """Rejects a constraint that is too long to be compiled, or that no answer can follow.

    The length is checked first: this runs on the caller's thread, which may be an event loop that serves others.

    Raises:
        ValueError: If the texts together are longer than `MAX_CHARACTERS`, or one holds half a character.
    """
    characters = sum(map(len, texts))
    if characters > MAX_CHARACTERS:
        most = f"at most {MAX_CHARACTERS:,} are compiled"
        raise ValueError(f"it has {characters:,} characters, and {most}; make it smaller")
    if any(map(HALVES.search, texts)):
        raise ValueError(_HALF)


class ConstraintOptions(Options):
    """Constraints of an answer: at most one of these, which need the extra `structured`."""

    json_schema: dict[str, Any] | None = None
    """The answer is a JSON value that this schema allows. It may be given as a pydantic model class or a string."""
    regex: str | None = None
    """The whole answer matches this regular expression, in the syntax of Rust's `regex` without look-around."""
    choices: tuple[str, ...] | None = None
    """The answer is one of these texts."""
    grammar: str | None = None
    """The answer follows this grammar, in llguidance's dialect of Lark."""

    @field_validator("json_schema", mode="before")
    @classmethod
    def _plain_schema(cls, value: Any) -> Any:
        return None if value is None else plain_schema(value)

    @field_validator("choices", mode="before")
    @classmethod
    def _some_choices(cls, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
            raise ValueError("give a list of strings")
        choices = tuple(value)
        if not choices:
            raise ValueError("there is nothing to choose from; give at least one string, or None")
        for choice in choices:
            if not isinstance(choice, str) or not choice:
                raise ValueError(f"{choice!r} is not a choice; give strings that are not empty")
        _check_text(*choices)
        return choices

    @field_validator("regex", "grammar")
    @classmethod
    def _some_text(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("it would allow only the empty answer; leave it out")
        if value is not None:
            _check_text(value)
        return value

    @field_validator(*CONSTRAINTS)
    @classmethod
    def _can_constrain(cls, value: Any) -> Any:
        if value is not None and not can_constrain():
            raise ValueError(f"a constraint {_NEEDS_EXTRA}")
        return value

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; an answer can have one constraint")
        return self

    @property
    def constraint(self) -> str | None:
        """The name of the option that constrains the answer, if there is one."""
        return next((name for name in CONSTRAINTS if getattr(self, name) is not None), None)

    @property
    def stops_apply(self) -> bool:
        """Whether stop strings cut the answer: not if what remains would no longer be JSON, or one of the choices."""
        return self.constraint not in {"json_schema", "choices"}
