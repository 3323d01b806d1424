"""Texts and lists in arguments of tools end, also where no schema says so; by llguidance's own view of the schemas."""

import json

import pytest
from conftest import RuleEnsemble
from llama_index.core.base.llms.types import ChatMessage
from reply_parts import call, tool

from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams
from deepen_core.errors import SamplingError
from deepen_core.replies import ReplyForm
from deepen_core.replies.argument_bounds import ArgumentBounds
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.llama_index import DeepenToolLLM

TEXT = {"type": "string"}
BOUNDS = ArgumentBounds(characters=5, items=2)


@pytest.fixture
def taken(verdict):
    """Whether a call with this argument may be said."""

    def judge(schema, value, form=None, **options):
        form = form or ReplyForm.from_openai([tool("note", {"x": schema})], "auto")
        bounds = {"max_argument_length": 5, "max_new_tokens": 16, **options}
        tagged, bare = (
            verdict(form, text, given=SamplingParams(**bounds))
            for text in (
                call("note", x=value),
                json.dumps({"name": "note", "arguments": {"x": value}}, ensure_ascii=False),
            )
        )
        assert tagged == bare
        return tagged == "whole"

    return judge


@pytest.mark.parametrize(
    ("schema", "fits", "is_too_long"),
    [
        (TEXT, "abcde", "abcdef"),
        (TEXT, "äöü你好", "äöü你好!"),
        (TEXT, '\n"\t\\/', '\n"\t\\/x'),
        ({"type": ["string", "null"]}, "abcde", "abcdef"),
        ({"anyOf": [TEXT, {"type": "null"}]}, "abcde", "abcdef"),
        ({}, "abcde", "abcdef"),
        ({"description": "anything"}, {"k": "abcdefgh"}, "abcdef"),
        ({"type": "string", "maxLength": 8}, "abcdefgh", "abcdefghi"),
        ({"type": "string", "minLength": 7}, "abcdefghi", "abc"),
        ({"enum": ["a very long word"]}, "a very long word", "abc"),
        ({"const": "a very long word"}, "a very long word", "abc"),
        ({"type": "string", "pattern": "^[a-z]{9,}$"}, "a" * 256, "a" * 257),
        ({"type": "string", "format": "date"}, "2024-02-03", "2024"),
        ({"type": "array", "items": TEXT}, ["abcde", "b"], ["a", "b", "c"]),
        ({"type": "array", "items": TEXT}, ["abcde"], ["abcdef"]),
        ({"type": "array", "items": TEXT, "maxItems": 3}, ["a", "b", "c"], ["a"] * 4),
        ({"type": "array", "items": TEXT, "minItems": 3}, ["a"] * 5, ["a"]),
        ({"type": "array", "prefixItems": [TEXT, TEXT, TEXT], "items": False}, ["a", "b", "c"], ["a", "b", "abcdef"]),
        ({"type": "object"}, {"a": "abcde", "b": 2}, {"a": 1, "b": 2, "c": 3}),
        ({"type": "object"}, {"a": "abcde"}, {"a": "abcdef"}),
        ({"type": "object", "additionalProperties": TEXT}, {"a": "abcde"}, {"a": "abcdef"}),
        ({"type": "object", "properties": {"y": TEXT}}, {"y": "abcde"}, {"y": "abcdef"}),
        ({"type": "object", "properties": {"y": TEXT}, "additionalProperties": True}, {"b": "abc"}, {"b": "abcdef"}),
        (
            {"type": "object", "properties": {"y": TEXT}, "required": ["y"], "additionalProperties": True},
            {"y": "a", "b": 2, "c": 3},
            {"y": "a", "b": 2, "c": 3, "d": 4},
        ),
        ({"$ref": "#/$defs/Note", "$defs": {"Note": TEXT}}, "abcde", "abcdef"),
    ],
)
def test_what_no_schema_bounds_is_bounded(taken, schema, fits, is_too_long):
    form = None
    if "$defs" in schema:
        form = ReplyForm.from_openai([tool("note", {"x": {"$ref": schema["$ref"]}}, **{"$defs": schema["$defs"]})])
    assert taken(schema, fits, form)
    assert not taken(schema, is_too_long, form)


def test_the_bounds_follow_the_length_of_the_answer_unless_they_are_given(taken):
    for options, characters in [
        ({"max_argument_length": None, "max_new_tokens": 40}, 80),
        ({"max_argument_length": 30, "max_new_tokens": 40}, 30),
    ]:
        assert taken(TEXT, "a" * characters, **options)
        assert not taken(TEXT, "a" * (characters + 1), **options)
        assert taken({"type": "array", "items": {"type": "integer"}}, [1] * 5, **options)
        assert not taken({"type": "array", "items": {"type": "integer"}}, [1] * 6, **options)
    free = {"max_argument_length": 0, "max_new_tokens": 8}
    assert taken(TEXT, "a" * 500, **free)
    assert taken({"type": "array", "items": {"type": "integer"}}, [1] * 50, **free)


def test_an_object_that_is_the_answer_is_as_its_schema_says(verdict):
    schema = {"type": "object", "properties": {"x": TEXT}, "required": ["x"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    given = SamplingParams(max_argument_length=5)
    for tools in ([], [tool("note", {"x": TEXT})]):
        form = ReplyForm.from_openai(tools, response_format=wanted)
        assert verdict(form, json.dumps({"x": "a" * 50}), given=given) == "whole"


def test_what_is_not_a_length_is_refused():
    with pytest.raises(SamplingError, match="max_argument_length"):
        SamplingParams.parse({"max_argument_length": -1}, SamplingError)


def test_the_tool_that_models_are_shown_is_the_callers():
    schema = {"type": "object", "properties": {"x": TEXT, "y": {"type": "array", "items": TEXT}}}
    before = json.dumps(schema)
    form = ReplyForm.from_openai([{"type": "function", "function": {"name": "note", "parameters": schema}}])
    form.params(SamplingParams(), Thoughts())
    assert json.dumps(schema) == json.dumps(form.tools[0].parameters) == before
    assert "maxLength" not in form.tools[0].described


@pytest.mark.parametrize(
    ("arguments", "reached"),
    [
        ({"x": "abcd", "y": ["a"], "z": 5}, []),
        ({"x": "abcde", "y": 1}, ["x"]),
        ({"x": 1, "y": {"deep": [{"in": "abcde"}]}}, ["y"]),
        ({"x": [1, 2]}, ["x"]),
    ],
)
def test_arguments_that_may_have_been_cut_off_are_named(arguments, reached):
    warnings = [*BOUNDS.warnings("note", arguments)]
    assert [warning.split("'")[1] for warning in warnings] == reached
    assert all("5 characters, 2 items" in warning and "'note'" in warning for warning in warnings)


def test_both_adapters_report_them():
    ensemble = RuleEnsemble()
    ensemble.has_chat_template = True
    tools = [tool("note", {"x": TEXT})]
    for said, warned in [("abcdef", True), ("abc", False)]:
        ensemble.default = call("note", x=said)
        message = ChatDeepen.from_ensemble(ensemble, max_argument_length=6).invoke("Note.", tools=tools)
        llm = DeepenToolLLM.from_ensemble(ensemble, max_argument_length=6)
        response = llm.chat([ChatMessage(role="user", content="Note.")], tools=tools)
        for reported in (message.response_metadata, response.raw):
            assert ("'x'" in str(reported.get("warnings"))) is warned
