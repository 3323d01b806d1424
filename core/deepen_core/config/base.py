"""Frozen pydantic options whose validation errors are raised as the engine's own errors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from deepen_core.errors import DeepenError

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
    """Turns a pydantic error into one sentence per field, with a suggestion for an unknown name."""
    names = list(model.model_fields)
    sentences = []
    for item in problem.errors():
        name = ".".join(str(part) for part in item["loc"]) or model.__name__
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}."
            sentences.append(f"Unknown option {name!r}: {hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            sentences.append(f"Option {name!r} is {shown(item['input'])}: {message}")
    return " ".join(sentences)


def shown(value: object) -> str:
    """Returns a wrong value as errors quote it."""
    said = repr(value)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
