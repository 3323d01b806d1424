"""Calls without their tag at the beginning of an answer, as grammar and parser take them."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reply_parts import NAMES, NOW, TOOLS, call

from deepen_core.chat.thoughts import Thoughts
from deepen_core.replies import Call, Reply, ReplyForm, ReplyParser, parse_reply

UNTAGGED = ["{}", "```json\n{}\n```", "```\n{}\n```", "<tools>\n{}\n</tools>", "\n {}"]


@pytest.mark.parametrize("around", UNTAGGED)
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"name": "add", "arguments": {"x": 3}}', "whole"),
        ('{\n  "name": "add",\n  "arguments": {"x": 3}\n}', "whole"),
        ('{"name": "plant", "parameters": {"tree": {}}}', "whole"),
        ('{"name": "say 你\\"好\\\\", "arguments": {"text": "}"}}', "whole"),
        ('{"name": "add", "arguments": {"x": "three"}}', "no"),
        ('{"name": "add", "x": 3}', "no"),
    ],
)
def test_a_call_without_its_tag_is_held_from_its_name_on(verdict, around, said, expected):
    form = ReplyForm.from_openai(TOOLS, "auto")
    text = around.replace("{}", said, 1)
    assert verdict(form, text) == expected
    if expected == "whole":
        reply = parse_reply(text, form.parser(Thoughts()))
        arguments = json.loads(said).get("arguments", json.loads(said).get("parameters"))
        assert reply == Reply("", "", (Call(json.loads(said)["name"], arguments),))
        cut = parse_reply(text[: text.rindex("}")], form.parser(Thoughts()))
        assert (cut.text, cut.calls, cut.cut.name) == ("", (), json.loads(said)["name"])
        assert verdict(ReplyForm.from_openai(TOOLS, "any"), text) == "no"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "subtract", "arguments": {}}',
        '{"name": "Felix", "age": 3}',
        'Like this: {"name": "now", "arguments": {}}',
        '```python\n{"name": "now", "arguments": {}}\n```',
        '["now"]',
        "{",
        "```json",
        '{"name": "no',
    ],
)
def test_text_that_merely_holds_json_stays_text(verdict, text):
    form = ReplyForm.from_openai(TOOLS, "auto")
    assert verdict(form, text) == "whole"
    assert parse_reply(text, form.parser(Thoughts())) == Reply(text, "", ())


def test_an_untagged_call_may_come_after_thoughts(verdict):
    form, said = ReplyForm.from_openai(TOOLS, "auto"), '{"name": "now", "arguments": {}}'
    assert verdict(form, f"<think>Hm.</think>\n\n{said}", "optional") == "whole"
    reply = parse_reply(f"<think>Hm.</think>\n\n{said}", form.parser(Thoughts("optional")))
    assert reply == Reply("", "Hm.", (Call("now", {}),))


PIECES = st.sampled_from(
    [
        *("\u2003", "\x1c", " ", "\n", "```json", "```", "<tools>", "</tools>", "a", "[" * 20),
        *('{"name": "now"', '{"name": "\\u006eow"', '{"name": "\\q"', '{\t"name" :"now"', '{"name": "no'),
        *(', "arguments": {}', ', "arguments": {"x": 3}', ', "arguments": [', "}"),
    ]
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(PIECES, max_size=6))
@example(pieces=["\u2003", '{"name": "now"', ', "arguments": {"x": 3}', "}"])
@example(pieces=["```json", "\u2003", '{"name": "now"', ', "arguments": {"x": 3}', "}"])
@example(pieces=['{"name": "\\u006eow"', ', "arguments": {"x": 3}', "}"])
def test_no_answer_that_the_grammar_lets_through_is_an_invalid_call(verdict, pieces):
    form, text = ReplyForm.from_openai([NOW], "auto"), "".join(pieces)
    reply = parse_reply(text, form.parser(Thoughts()))  # whatever it is, it is parsed
    if verdict(form, text) == "whole":
        assert all(call == Call("now", {}) for call in reply.calls)


def test_thousandfold_nesting_is_no_call():
    text = '{"name": "now", "arguments": {"x": ' + "[" * 100_000 + "}"
    assert parse_reply(text, ReplyParser(NAMES)).calls == ()


def object_of(properties, **more):
    schema = {"type": "object", "properties": properties, "required": list(properties), **more}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "now", "arguments": {}}', Call("now", {})),
        ('{"name":"add","arguments":{"x":3}}', Call("add", {"x": 3})),
        (
            '{"name": "plant", "arguments": {"tree": {"left": {"left": {}}}}}',
            Call("plant", {"tree": {"left": {"left": {}}}}),
        ),
        ('{"name": "now", "age": 3}', None),
        ('{"name": "nowhere", "age": 3}', None),
        ('{"name": "Felix", "age": 3}', None),
    ],
)
def test_where_an_object_is_wanted_a_call_may_lack_its_tag_as_well(verdict, text, expected):
    form = ReplyForm.from_openai(TOOLS, "auto", response_format=object_of({"name": {"type": "string"}, "age": {}}))
    assert verdict(form, text) == "whole"
    whole, in_pieces = form.parser(Thoughts()), form.parser(Thoughts())
    parts = [part for character in text for part in in_pieces.feed(character)]
    assert [*parts, *in_pieces.finish()] == [expected] if expected else "".join(p.text for p in parts) == text
    assert parse_reply(text, whole) == (Reply("", "", (expected,)) if expected else Reply(text, "", ()))


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "arguments": {"x": "3"}}',
        '{"name": "subtract", "arguments": {"x": 3}}',
        '{"name": "add", "arguments": {"x": 3}, "age": 3}',
        '```json\n{"name": "now"',
        "Hello.",
    ],
)
def test_where_an_object_is_wanted_nothing_else_is_let_through(verdict, text):
    wanted = object_of({"name": {"type": "string"}, "age": {"type": "integer"}})
    assert verdict(ReplyForm.from_openai(TOOLS, "auto", response_format=wanted), text) == "no"


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_object"},
        object_of({"name": {"type": "string"}, "arguments": {"type": "object"}}),
        object_of({"name": {"enum": ["now"]}, "parameters": {"type": "object"}}),
        object_of({"name": {"type": "string"}}, additionalProperties=True),
    ],
)
def test_an_object_that_may_look_like_a_call_is_an_object(verdict, wanted):
    form = ReplyForm.from_openai(TOOLS, "auto", response_format=wanted)
    for field in ("arguments", "parameters"):
        said = f'{{"name": "now", "{field}": {{}}}}'
        assert parse_reply(said, form.parser(Thoughts())) == Reply(said, "", ())
    assert verdict(form, call("now")) == "whole"


@pytest.mark.parametrize("around", UNTAGGED)
def test_an_untagged_call_may_come_in_any_pieces(around):
    """And what stands around it is of no part, also where it is cut off."""
    text = around.replace("{}", '{"name": "now", "arguments": {}}', 1)
    for end in range(text.rindex("}") + 1, len(text) + 1):
        parser = ReplyParser(NAMES)
        parts = [part for character in text[:end] for part in parser.feed(character)]
        assert [*parts, *parser.finish()] == [Call("now", {})]
    assert parse_reply(text + " Well.", ReplyParser(NAMES)) == Reply("Well.", "", (Call("now", {}),))
