"""Frozen pydantic options whose validation errors are raised as the engine's own errors."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from deepen_core.errors import DeepenError

_NEAR, _NEAR_SHORT = 0.75, 0.6  # likeness of a name that is suggested for an unknown one, or for one of few letters
_SHORT = 6
_SHOWN = 200  # characters of a wrong value that an error quotes


class Options(BaseModel):
    """Frozen options whose mistakes are raised as `DeepenError`, with the nearest field name."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, values: Mapping[str, Any], error: type[DeepenError]) -> Any:
        """Builds the options from plain values.

        Args:
            values: Field name to value.
            error: Class of the error to raise.

        Raises:
            DeepenError: Of class `error`, naming every wrong field and, for an unknown one, the nearest known one.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as problem:
            raise error(explain(problem, cls)) from problem


def explain(problem: ValidationError, model: type[BaseModel]) -> str:
    """Turns a pydantic error into one sentence, or a line per fault; unknown names get a suggestion.

    What is wrong with known options is left out while there are unknown ones, which are often the reason: a misspelt
    option is also a missing one.
    """
    faults = problem.errors()
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    told = [_sentence(fault, model) for fault in unknown or faults]
    return told[0] if len(told) == 1 else "\n".join([f"{len(told)} options are wrong:", *(f"- {one}" for one in told)])


def _sentence(fault: Mapping[str, Any], model: type[BaseModel]) -> str:
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"Unknown option {name!r}: {nearest_or_all(name, model.model_fields)}"
    message = fault["msg"].removeprefix("Value error, ")
    if not name:  # of several options together
        return f"{message[:1].upper()}{message[1:]}."
    return f"Option {name!r} is {shown(fault['input'])}: {message}"


def nearest_or_all(name: str, known: Collection[str]) -> str:
    """Returns a hint for an unknown name: the nearest known one, or all if none is near."""
    cutoff = _NEAR_SHORT if len(name) <= _SHORT else _NEAR
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."


def shown(value: object) -> str:
    """Returns a wrong value as errors quote it."""
    if isinstance(value, (list, tuple, dict)) and len(value) > _SHOWN:  # each part takes at least one character
        value = dict(islice(value.items(), _SHOWN)) if isinstance(value, dict) else value[:_SHOWN]
    try:
        said = repr(value)
    except RecursionError:
        said = f"a {type(value).__name__} too deep to be shown"
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
