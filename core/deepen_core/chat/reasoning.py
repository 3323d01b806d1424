"""The variables with which a chat template turns thoughts on and off, whatever its family calls them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from deepen_core.config.sampling import EFFORT_VARIABLES, THOUGHT_SWITCHES
from deepen_core.errors import SamplingError

_EFFORTS = ("high", "medium", "low", "max", "xhigh", "minimal")
"""Efforts that templates name, the one to take if only thoughts as such are asked for first."""
_UNKNOWN = "zqeffortqz"


class ReasoningSwitch:
    """Finds out by rendering a conversation which variables of a template have an effect.

    Args:
        template: The template.
        name: The member's name, for error messages.
        rendered: Renders a conversation with given variables; None if the template refuses them.
        thinks: Whether the template knows marks around thoughts.
    """

    def __init__(
        self, template: str, name: str, rendered: Callable[[Mapping[str, Any]], str | None], *, thinks: bool
    ) -> None:
        self._template = template
        self._name = name
        self._rendered = rendered
        self._thinks = thinks
        self._toggle = next((s for s in THOUGHT_SWITCHES if self._differs({s[0]: s[1]}, {s[0]: s[2]})), None)
        self._effort = next((v for v in EFFORT_VARIABLES if self._differs({v: "low"}, {v: "high"})), None)

    def variables(self, wanted: bool | str) -> dict[str, Any]:
        """Returns the variables that have the effect that is wanted; none where that is how the template is anyway.

        Args:
            wanted: Whether the model thinks, or its effort. The effort "none" is False.

        Raises:
            SamplingError: If the template has no variable for that.
        """
        if wanted is False or wanted == "none":
            return self._off()
        return self._on() if wanted is True else self._at(str(wanted))

    def _off(self) -> dict[str, Any]:
        if self._toggle:
            return {self._toggle[0]: self._toggle[2]}
        if self._effort and self._names("none"):
            return {self._effort: "none"}
        if not self._thinks:
            return {}
        less = f"choose an effort, such as {self._example()!r}" if self._effort else "leave reasoning out"
        raise self._error(False, f"cannot turn thoughts off: {less}, or use another model as main.")

    def _on(self) -> dict[str, Any]:
        if self._toggle:
            return {self._toggle[0]: self._toggle[1]}
        if not self._thinks:
            raise self._error(True, "knows no thoughts: leave reasoning out, or use a model that thinks as main.")
        if self._effort and self._names("none") and not self._differs({}, {self._effort: "none"}):
            return {self._effort: self._example()}  # without it, this template turns thoughts off
        return {}

    def _at(self, effort: str) -> dict[str, Any]:
        if self._effort is None:
            known = "give True or False." if self._toggle else "leave reasoning out."
            raise self._error(effort, f"knows no levels of effort: {known}")
        name = self._effort
        rendered = self._rendered({name: effort})
        if rendered is None or not (self._names(effort) or self._differs({name: effort}, {name: _UNKNOWN})):
            named = [known for known in _EFFORTS if self._names(known)]
            raise self._error(effort, f"does not know this effort: choose {' or '.join(map(repr, named or ['low']))}.")
        return {name: effort, **({self._toggle[0]: self._toggle[1]} if self._toggle else {})}

    def _example(self) -> str:
        return next(filter(self._names, _EFFORTS), "low")

    def _names(self, effort: str) -> bool:
        """Whether the template compares with an effort."""
        return re.search(rf"""(["']){re.escape(effort)}\1""", self._template) is not None

    def _differs(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
        """Whether variables, which the template must name at all, change what it renders."""
        if not all(re.search(rf"\b{name}\b", self._template) for name in {*first, *second}):
            return False
        return self._rendered(first) != self._rendered(second)

    def _error(self, wanted: bool | str, problem: str) -> SamplingError:
        return SamplingError(f"reasoning={wanted!r}: the chat template of member {self._name!r} {problem}")
