"""How much an operation of a chat template could make, for those that make much more than they are given.

Filters and methods have the arguments that Jinja and Python give them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from deepen_core.chat.template_work import LimitError, Work, check_bits

_MAX_PRECISION = 300  # a power of ten with more digits than any float
_MAX_INDENT = 100
_OF_JINJA = ("_loop_vars", "_block_vars")  # given to every call, for macros
_DIGITS = re.compile(r"\d+")


def check_operation(work: Work, operator: str, left: Any, right: Any) -> None:
    """Rejects a product, a power or a formatted text that would be too large.

    Args:
        work: What may be made.
        operator: "*", "**" or "%".
        left: The left operand.
        right: The right operand.
    """
    if isinstance(left, (str, bytes, bytearray)) and operator == "%":
        work.check_room(_formatted(work, left, right))
    elif isinstance(left, int) and isinstance(right, int):
        if operator == "*":
            check_bits(left.bit_length() + right.bit_length() - 1)
        elif operator == "**" and right > 0:
            check_bits((left.bit_length() - 1) * right)
    elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
        number, value = (left, right) if isinstance(left, int) else (right, left)
        work.check_room(max(0, number) * work.weight(value))


def check_filter(work: Work, name: str, value: Any, args: Iterable[Any], options: dict[str, Any]) -> None:
    """Rejects a filter that would make too much.

    Args:
        work: What may be made.
        name: The filter.
        value: What it is applied to.
        args: Its other arguments.
        options: Those by name.
    """
    if name in FILTERS:
        work.check_room(FILTERS[name](work, value, *args, **options))


def check_call(work: Work, called: Any, args: Iterable[Any], options: dict[str, Any]) -> None:
    """Rejects a call of a method of texts or numbers that would make too much.

    Args:
        work: What may be made.
        called: What is called.
        args: Its arguments.
        options: Those by name.
    """
    method = getattr(called, "__wrapped__", called)  # the sandbox wraps `format`
    text = getattr(method, "__self__", None)
    estimate = _METHODS.get(getattr(method, "__name__", "")) if isinstance(text, (str, bytes, bytearray)) else None
    if estimate is not None:
        named = {name: value for name, value in options.items() if name not in _OF_JINJA}
        work.check_room(estimate(work, text, *args, **named))


def check_indent(indent: Any) -> None:
    """Rejects JSON that would be indented by much more than anyone reads."""
    wide = indent if isinstance(indent, int) else len(indent or "")
    if wide > _MAX_INDENT:
        raise LimitError(f"indents JSON by {wide:,} characters, and at most {_MAX_INDENT} are taken")


def _formatted(work: Work, form: Any, *values: Any, **options: Any) -> int:
    text = str(form, "latin-1") if isinstance(form, (bytes, bytearray)) else str(form)
    fields = text.count("%") + text.count("{")
    if not fields:
        return len(text)
    numbers = [int(digits[:20]) for digits in _DIGITS.findall(text)]
    given = [values, options]
    return len(text) + fields * (work.weight(given) + max(chain(numbers, _integers(given)), default=0))


def _integers(value: Any) -> Iterable[int]:
    """Yields the integers in a value that was weighed."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict):
        yield from _integers(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _integers(one)


def _joined(work: Work, value: Any, d: Any = "", attribute: Any = None) -> int:
    del attribute
    items = len(value) if hasattr(value, "__len__") else work.weight([])
    return work.weight(value) + items * work.weight(d)


def _joined_by(work: Work, separator: Any, items: Any = ()) -> int:
    return _joined(work, items, separator)


def _replaced(work: Work, value: Any, old: Any = "", new: Any = "", count: Any = None) -> int:
    del count
    text, old = (one if isinstance(one, (bytes, bytearray)) else str(one) for one in (value, old))
    try:
        return work.weight(text) + text.count(old) * work.weight(new)
    except TypeError:  # texts and bytes, which Python does not replace in one another
        return 0


def _widened(work: Work, value: Any, *args: Any, **options: Any) -> int:
    return work.weight(value) + max(_integers([args, options]), default=0)


def _filled(work: Work, value: Any, *args: Any, **options: Any) -> int:
    """Of filters that pad lists with a given value."""
    fill = args[1] if len(args) > 1 else options.get("fill_with")
    return work.weight(value) + max(_integers([args, options]), default=0) * (1 + work.weight(fill))


def _indented(work: Work, value: Any, width: Any = 4, *args: Any, **options: Any) -> int:
    del args, options
    text = str(value)
    lines = len(text.splitlines()) + text.count("\t") + 1
    return len(text) + lines * (max(0, width) if isinstance(width, int) else work.weight(width))


def _expanded(work: Work, value: Any, tabsize: Any = 8) -> int:
    return (
        _indented(work, value, tabsize) if isinstance(value, str) else _indented(work, str(value, "latin-1"), tabsize)
    )


def _rounded(work: Work, value: Any, precision: Any = 0, method: Any = "common") -> int:
    del work, value, method
    if isinstance(precision, int) and abs(precision) > _MAX_PRECISION:
        raise LimitError(f"rounds to {precision} digits")
    return 0


def _summed(work: Work, value: Any, attribute: Any = None, start: Any = 0) -> int:
    """Sums of lists take time that grows with their square."""
    del work, value, attribute
    if not isinstance(start, (int, float)):
        raise LimitError(f"adds up values of type {type(start).__name__} by a filter for numbers")
    return 0


Estimate = Callable[..., int]
FILTERS: dict[str, Estimate] = {
    "batch": _filled,
    "center": _widened,
    "format": _formatted,
    "indent": _indented,
    "join": _joined,
    "replace": _replaced,
    "round": _rounded,
    "slice": _filled,
    "sum": _summed,
    "truncate": _widened,
}
"""By the name of the filter."""
_METHODS: dict[str, Estimate] = {
    "center": _widened,
    "expandtabs": _expanded,
    "format": _formatted,
    "format_map": _formatted,
    "join": _joined_by,
    "ljust": _widened,
    "replace": _replaced,
    "rjust": _widened,
    "zfill": _widened,
}
