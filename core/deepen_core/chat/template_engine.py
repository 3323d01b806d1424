"""Renders chat templates as `transformers` does, in its sandbox with its filters and functions, and with limits.

A template can make the longest text from a few characters, and loop for ever, so what it makes is counted as it goes:

1. compiled code counts each block that is entered, and each value that an operator, filter or call has made;
2. operations that could make far more than they are given are estimated first;
3. every thousand operations the clock is looked at.

No thread or signal is needed, and a template costs about as much as without limits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from deepen_core.chat.template_code import CountingCode
from deepen_core.chat.template_estimates import check_call, check_filter, check_indent, check_operation
from deepen_core.chat.template_work import LimitError, Work

MAX_TEMPLATE = 2**18
"""Characters of a template, which is compiled before it is run; the longest in use have a tenth of that."""
_MAX_RANGE = 100_000
_UNBOUNDED_METHODS = frozenset({"translate", "to_bytes"})
_UNBOUNDED_FILTERS = ("urlize", "wordwrap", "pprint", "xmlattr")
"""Jinja's filters for web pages, whose regular expressions can take very long."""
_COMPARING = ("in", "eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">")


class TemplateProgram:
    """A compiled chat template.

    Args:
        source: The template.

    Raises:
        LimitError: If it is too long.
        jinja2.TemplateSyntaxError: If it is not Jinja.
        RecursionError: If it is nested too deep to be compiled.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise LimitError(f"has {len(source):,} characters, and at most {MAX_TEMPLATE:,} are compiled")
        self._template = _Environment().from_string(source)

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Returns what the template writes for a conversation, ready for the assistant's answer.

        Args:
            messages: The conversation.
            variables: The template's other variables.

        Raises:
            LimitError: If it makes too much, or takes too long.
            Exception: Whatever the template raises.
        """
        usual = {"tools": None, "documents": None, "add_generation_prompt": True}
        given = _plain({"messages": messages, **usual, **variables})
        context = cast(_Context, self._template.new_context(given))
        context.begin(Work(len(repr(given))))
        return "".join(self._template.root_render_func(context))


def _plain(value: Any) -> Any:
    """Returns a value made of plain types only, as `transformers` shows values to templates; others by their type."""
    if value is None or value.__class__ in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    return _plain(value.item()) if isinstance(value, np.generic) else f"<{type(value).__name__}>"


class _Context(Context):
    """The variables of one rendering, and its work."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.begin(Work())

    def begin(self, work: Work) -> None:
        """Sets what counts the work."""
        self.work, self.made, self.compared, self.written = work, work.made, work.compared, work.written

    def derived(self, locals: dict[str, Any] | None = None) -> Context:  # noqa: A002 (as in Jinja)
        """See `Context.derived`; the work goes on."""
        context = cast(_Context, super().derived(locals))
        context.begin(self.work)
        return context

    def filtered(self, name: str, value: Any, *args: Any, **options: Any) -> Any:
        """Returns what a filter makes of a value."""
        return self.environment.call_filter(name, value, args, options, self)


class _Environment(ImmutableSandboxedEnvironment):
    """What `transformers` offers chat templates, with limits."""

    code_generator_class = CountingCode
    context_class = _Context
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or constant expressions would be computed while they are compiled
            extensions=[_Generation, loopcontrols],
        )
        self.filters["tojson"] = _tojson
        for name in _UNBOUNDED_FILTERS:
            self.filters.pop(name, None)
        for name in _COMPARING:
            self.tests[name] = _counting(self.tests[name])
        self.globals = {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),  # noqa: DTZ005 (as transformers does)
            "dict": _Dict(),
            "namespace": _Names,
            "range": _range,
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
        }

    def call(__self, __context: Context, __obj: Any, *args: Any, **options: Any) -> Any:  # noqa: N805, PYI063 (as in Jinja)
        """Calls a macro, function or method from a template."""
        work = cast(_Context, __context).work
        check_call(work, __obj, args, options)
        return work.made(super().call(__context, __obj, *args, **options))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes what a template computes with an operator."""
        work = cast(_Context, context).work
        check_operation(work, operator, left, right)
        return work.made(super().call_binop(context, operator, left, right))

    def call_filter(
        self,
        name: str,
        value: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        context: Context | None = None,
        eval_ctx: nodes.EvalContext | None = None,
    ) -> Any:
        """Applies a filter that is found by its name, as in `map('upper')`."""
        work = cast(_Context, context).work
        if name == "join" and not hasattr(value, "__len__"):
            value = list(value)
        check_filter(work, name, value, args or (), dict(kwargs or {}))
        return work.made(super().call_filter(name, value, args, kwargs, context, eval_ctx))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute."""
        return attr not in _UNBOUNDED_METHODS and super().is_safe_attribute(obj, attr, value)


class _Generation(Extension):
    """`{% generation %}` marks what a model has written, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (as in Jinja)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Dict:
    """The function `dict` of templates, without the attributes of Python's class."""

    def __call__(self, *args: Any, **options: Any) -> dict[Any, Any]:
        return dict(*args, **options)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Names(Namespace):
    """The variables that a template shares between scopes; names that begin with an underscore are not among them."""

    def __init__(*args: Any, **options: Any) -> None:
        self, args = args[0], args[1:]
        names = dict(*args, **options)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # its values may hold one another many times over


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"names of a namespace cannot begin with an underscore, as {name!r} does")


@pass_context
def _tojson(
    context: _Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    options: dict[str, Any] = {
        "ensure_ascii": ensure_ascii,
        "indent": indent,
        "separators": separators,
        "sort_keys": sort_keys,
    }
    check_indent(indent)
    if indent is None and separators is None:
        return json.dumps(value, **options)
    pieces = []
    for piece in json.JSONEncoder(**options).iterencode(value):
        context.work.written(len(piece))
        pieces.append(piece)
    return "".join(pieces)


def _counting(test: Any) -> Any:
    @pass_context
    def counted(context: _Context, *args: Any) -> Any:
        return context.work.compared(test(*args))

    return counted


def _raise(message: str) -> None:
    raise TemplateError(message)


def _range(*args: int) -> range:
    found = range(*args)
    if len(found) > _MAX_RANGE:
        raise LimitError(f"asks for a range of {len(found):,} numbers, and at most {_MAX_RANGE:,} are given")
    return found
