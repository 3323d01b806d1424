"""Translates the options that constrain an answer into a grammar, or raises with the reason why it cannot."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLTokenizer, regex_to_lark

from deepen_core.config.constraints import ConstraintOptions
from deepen_core.constraints.big_stack import on_big_stack
from deepen_core.constraints.json_schema import checked_schema
from deepen_core.constraints.limits import check_grammar, check_size
from deepen_core.constraints.relaxation import Relaxation
from deepen_core.errors import SamplingError, SchemaWarning, brief, is_panic

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # there for type checkers only

    from deepen_core.constraints.validation import SchemaCheck

# At most one blank, after a comma or a colon as people write JSON: models keep their habit, but cannot write blanks
# without end.
_COMPACT: JsonCompileOptions = {
    "item_separator": ", ?",
    "key_separator": ": ?",
    "whitespace_flexible": False,
    "lenient": False,
}
_DIRECTIVES = "x-guidance"  # llguidance's own keyword in a schema
_FREE = '%llguidance {"no_forcing": true}'  # text that is fully determined may still be spelled in any tokens
_REGEX_SIGNS = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~]")
# The parts of a Lark grammar to skip (strings, expressions, comments), and the start of embedded JSON.
_LARK_PIECE = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*|(?P<json>%json\s*)(?=\{)')


def grammar_of(params: ConstraintOptions) -> str:
    """Returns the grammar of an answer, in llguidance's dialect of Lark.

    Args:
        params: Options, one of which constrains the answer.

    Raises:
        SamplingError: If it cannot be followed: a schema with parts that are not supported or contradict each other,
            or a mistake in a regular expression or grammar.
    """
    assert params.constraint is not None
    said = json.dumps(getattr(params, params.constraint))
    check_size(said, params.constraint)
    return _grammar(params.constraint, said)


@lru_cache(maxsize=64)
def _grammar(name: str, said: str) -> str:
    """Cached, since each request is compiled twice: to check it before its ensemble is loaded, and again after that."""
    return on_big_stack(partial(_compiled, name, json.loads(said)))


def _compiled(name: str, value: Any) -> str:
    if name == "json_schema":
        return f"start: {json_rule(value)}\n{_FREE}"
    if name == "choices":
        rules = _start("|".join(map(_escaped, value)))
    elif name == "regex":
        rules = _start(value)
    else:
        check_grammar(value)
        rules = _with_compact_json(value)
    if problem := _problem(rules):
        raise SamplingError(f"{name} cannot be followed: {problem}")
    return f"{rules}\n{_FREE}"


def json_rule(schema: dict[str, Any]) -> str:
    """Returns the Lark expression for JSON of a schema: `%json`, without needless blanks.

    Directives to llguidance in the schema are left out: they can make it accept text that is not JSON.

    Raises:
        SamplingError: If the schema cannot be followed, naming the part at fault.
    """
    plain = {name: value for name, value in schema.items() if name != _DIRECTIVES}
    checked = checked_schema(plain, _problem_of_schema)
    return f"%json {json.dumps({**checked, _DIRECTIVES: _COMPACT}, ensure_ascii=False)}"


@dataclass(frozen=True)
class FollowedSchema:
    """What decoding follows of a schema, and what checks the rest."""

    schema: dict[str, Any]
    """Allows whatever the given schema does, except for extra properties that it did not ask for."""
    check: SchemaCheck | None
    """Checks finished values, if decoding cannot follow everything."""


def followed_schema(schema: Mapping[str, Any], what: str, *, strict: bool = False) -> FollowedSchema:
    """Returns what decoding follows of a schema; with a warning, once, if that is not everything.

    Args:
        schema: A JSON schema.
        what: What it is the schema of, for errors and the warning, such as "tool 'search'".
        strict: Raise instead of relaxing it.

    Raises:
        SamplingError: If it cannot be followed, naming `what` and the part at fault.
    """
    said = json.dumps(schema)
    check_size(said, f"The schema of {what}")
    return _followed(said, what, strict)


@lru_cache(maxsize=512)
def _followed(said: str, what: str, strict: bool) -> FollowedSchema:
    followed, relaxed = on_big_stack(partial(_following, said, what, strict))
    if relaxed:
        warnings.warn(
            f"{what[:1].upper()}{what[1:]}: its schema is relaxed while decoding ({', '.join(relaxed)}), and checked "
            "in the finished answer. strict=True refuses it instead.",
            SchemaWarning,
            stacklevel=2,
        )
    return followed


def _following(said: str, what: str, strict: bool) -> tuple[FollowedSchema, list[str]]:
    given = {name: value for name, value in json.loads(said).items() if name != _DIRECTIVES}
    named = f"{what[:1].upper()}{what[1:]}"
    try:
        if strict:
            return FollowedSchema(checked_schema(given, _problem_of_schema), None), []
        relaxation = Relaxation(given, _problem_of_schema)
        schema = checked_schema(relaxation.schema, _problem_of_schema)
    except SamplingError as problem:
        raise SamplingError(f"{named}: {problem}") from problem
    if not relaxation.relaxed:
        return FollowedSchema(schema, None), []
    from deepen_core.constraints.validation import SchemaCheck  # noqa: PLC0415  slow, and seldom needed

    return FollowedSchema(schema, SchemaCheck(given)), relaxation.relaxed


@lru_cache(maxsize=256)
def _may_begin(schema: str, text: str) -> bool:
    def begins() -> bool:
        matcher = LLMatcher(LLTokenizer("byte"), f"start: {json_rule(json.loads(schema))}", log_level=0)
        said = text.encode()
        return matcher.try_consume_tokens(list(said)) == len(said)

    return on_big_stack(begins)


def json_may_begin(schema: Mapping[str, Any], text: str) -> bool:
    """Whether JSON of a schema may begin with a text.

    Raises:
        SamplingError: As for `json_rule`.
    """
    return _may_begin(json.dumps(schema), text)


def _start(regex: str) -> str:
    return f"start: /{regex_to_lark(regex, '')}/"


def _escaped(text: str) -> str:
    return _REGEX_SIGNS.sub(r"\\\g<0>", text)


def _problem_of_schema(schema: dict[str, Any]) -> str:
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_COMPACT)
    except ValueError as problem:  # a whole number of more than 64 bits
        return f"{problem}."
    except BaseException as problem:  # noqa: BLE001 (raised again, unless it is a panic)
        return _panic(problem)
    return _problem(grammar)


def _panic(problem: BaseException) -> str:
    """Returns the message for a panic of llguidance; raises any other exception again."""
    if not is_panic(problem):
        raise problem
    return f"llguidance fails on it ({brief(problem)})."


def _problem(grammar: str) -> str:
    """Returns llguidance's complaint about a grammar, or an empty string if it is valid."""
    try:
        wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    except BaseException as problem:  # noqa: BLE001 (raised again, unless it is a panic)
        return _panic(problem)
    said = " ".join(messages[0].split()) if wrong else ""
    # It names an option of its own here, which would let through what the schema forbids.
    return "one value may match several options of its oneOf." if "coerce_one_of" in said else said


def _with_compact_json(grammar: str) -> str:
    """Returns a Lark grammar in which the JSON of its schemas has no needless blanks."""
    parts, place = [], 0
    while found := _LARK_PIECE.search(grammar, place):
        parts.append(grammar[place : found.start() if found["json"] else found.end()])
        place = found.end()
        if found["json"]:
            try:
                schema, place = json.JSONDecoder().raw_decode(grammar, place)
            except json.JSONDecodeError as problem:
                raise SamplingError(f"grammar has a schema that is not JSON: {problem}") from problem
            parts.append(json_rule(schema))
    return "".join([*parts, grammar[place:]])
