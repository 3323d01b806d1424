"""Schemas and grammars that would end the process, or never end, are refused with the number and the limit."""

import json
import threading
import time

import pytest

from deepen_core import SamplingParams
from deepen_core.config.constraints import MAX_CHARACTERS
from deepen_core.constraints.big_stack import is_big, on_big_stack
from deepen_core.constraints.grammar import followed_schema, grammar_of
from deepen_core.constraints.limits import MAX_DEPTH, MAX_OPTIONAL, MAX_PARTS, MAX_RULES
from deepen_core.constraints.validation import SchemaCheck
from deepen_core.errors import SamplingError


def chain(links, of=lambda ref: {"type": "array", "items": ref}):
    named = {f"n{i}": of({"$ref": f"#/$defs/n{i + 1}"}) for i in range(links)}
    return {"$defs": {**named, f"n{links}": {"type": "integer"}}, "$ref": "#/$defs/n0"}


def objects(optional):
    return {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(optional)}}


def rules(count, opening="", closing=""):
    lines = [f'r{i}: {opening}"a" r{i + 1}{closing}' for i in range(count - 2)]
    return "\n".join(["start: r0", *lines, f'r{count - 2}: "b"'])


REFUSED = {
    "a chain of references": (chain(3000), f"more than {MAX_DEPTH} levels"),
    "a chain of bare references": (chain(5000, lambda ref: ref), f"more than {MAX_DEPTH} levels"),
    "many parts": ({"anyOf": [{"const": i} for i in range(MAX_PARTS)]}, f"more than {MAX_PARTS:,} parts"),
    "optional properties": (objects(MAX_OPTIONAL + 1), f"{MAX_OPTIONAL + 1} optional properties.* {MAX_OPTIONAL} can"),
    "optional ones inside": ({"type": "array", "items": objects(600)}, r"at \$\.items: it has 600 optional"),
    "a large bound": ({"type": "integer", "minimum": 2**64}, r"at \$: it has an integer beyond 64 bits"),
    "a large constant": ({"const": [{"a": -(2**70)}]}, "beyond 64 bits"),
    "a large name": ({"enum": ["é" * (MAX_CHARACTERS // 5)]}, f"characters, and at most {MAX_CHARACTERS:,}"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_schema_beyond_a_limit_is_refused_at_once(kind):
    schema, said = REFUSED[kind]
    params = SamplingParams(json_schema=schema)
    with pytest.raises(SamplingError, match=said):
        grammar_of(params)
    with pytest.raises(SamplingError, match=said):
        followed_schema(schema, "tool 'f'")


def test_a_grammar_beyond_a_limit_is_refused_at_once():
    with pytest.raises(SamplingError, match=f"grammar has 3,000 rules, and at most {MAX_RULES:,}"):
        grammar_of(SamplingParams(grammar=rules(3000)))
    for option in ({"regex": "a" * MAX_CHARACTERS}, {"choices": ["a" * MAX_CHARACTERS]}):
        with pytest.raises(SamplingError, match=f"characters, and at most {MAX_CHARACTERS:,}"):
            grammar_of(SamplingParams(**option))


@pytest.mark.parametrize(
    "option",
    [
        {"json_schema": chain(MAX_DEPTH // 2 - 2)},
        {"json_schema": chain(MAX_DEPTH // 3, lambda ref: {"anyOf": [ref, {"type": "string"}]})},
        {"grammar": rules(MAX_RULES - 1, "(" * 20, ")" * 20)},
    ],
)
def test_what_is_within_the_limits_compiles_in_a_thread_with_little_stack(option):
    params, done = SamplingParams(**option), []
    usual = threading.stack_size(256 * 1024)
    try:
        caller = threading.Thread(target=lambda: done.append(grammar_of(params)))
        caller.start()
    finally:
        threading.stack_size(usual)
    caller.join()
    assert done


def test_500_optional_properties_are_decoded(pair):
    answer = pair.generate("The", json_schema=objects(MAX_OPTIONAL), max_new_tokens=8)
    assert answer.text.startswith("{")


def test_a_schema_that_refers_to_itself_is_not_deep():
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}
    assert followed_schema(tree, "tool 'f'").check is None


def test_the_part_at_fault_is_looked_for_only_briefly():
    wrong = {"type": "object", "properties": {f"p{i}": {"$ref": "#/$defs/d"} for i in range(2000)}}
    wrong |= {"$defs": {"d": {"type": "integer", "minimum": 5, "maximum": 1}}, "required": ["p1"], "uniqueItems": "x"}
    start = time.perf_counter()
    with pytest.raises(SamplingError, match="cannot be followed"):
        followed_schema(wrong, "tool 'f'", strict=True)
    assert time.perf_counter() - start < 30


def test_errors_and_results_come_back_from_the_large_stack():
    assert on_big_stack(is_big)
    assert not is_big()
    assert on_big_stack(lambda: on_big_stack(threading.get_ident) == threading.get_ident())
    threading.stack_size(2**20)
    with pytest.raises(ZeroDivisionError):
        on_big_stack(lambda: 1 / 0)
    assert threading.stack_size(0) == 2**20


EXPONENTIAL = {
    "a pattern": ({"type": "string", "pattern": "^(a|aa)+$"}, "a" * 60 + "b"),
    "a pattern of names": (
        {"patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False},
        {"a" * 60 + "b": 1},
    ),
    "references": (chain(40, lambda ref: {"anyOf": [ref, ref]}), "x"),
}


@pytest.mark.parametrize("kind", EXPONENTIAL)
def test_a_check_that_would_take_exponential_time_ends(kind):
    schema, value = EXPONENTIAL[kind]
    start = time.perf_counter()
    assert "could not be checked within" in SchemaCheck(schema).problem(value)
    assert time.perf_counter() - start < 30, "without a limit it takes years"


def test_other_threads_go_on_while_a_pattern_is_searched():
    schema, value = EXPONENTIAL["a pattern"]
    turns, done = [], threading.Event()

    def other():
        while not done.wait(0.01):
            turns.append(time.perf_counter())

    thread = threading.Thread(target=other)
    thread.start()
    start = time.perf_counter()
    SchemaCheck(schema).problem(value)
    took = time.perf_counter() - start
    done.set()
    thread.join()
    assert len(turns) > 20 * took, "a pattern that holds the interpreter would leave none"


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"pattern": "^(?=a)\\w+$"}, "abc", "bc"),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "integer"}}, {"a": "", "b": 1}, {"b": "x"}),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"a": 1}, {"a": 1, "b": 1}),
        ({"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False}, {"xa": 1}, {"xa": ""}),
        ({"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False}, {"xa": 1}, {"ya": 1}),
    ],
)
def test_a_bounded_check_says_what_jsonschema_says(schema, right, wrong):
    check = SchemaCheck(json.loads(json.dumps(schema)))
    assert check.problem(right) == ""
    assert check.problem(wrong).startswith("at $")
