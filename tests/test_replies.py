"""Forms of answers: their grammar against llguidance, and what is no form."""

import pytest
from pydantic import BaseModel
from reply_parts import ADD, NOW, OBJECT, TOOLS, call, tool

from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams
from deepen_core.errors import SamplingError
from deepen_core.replies import Call, ReplyForm, parse_reply
from deepen_core.replies.grammar import MOST_CALLS


@pytest.mark.parametrize(
    ("choice", "text", "expected"),
    [
        ("auto", "", "whole"),
        ("auto", "Hello.", "whole"),
        ("auto", "Hello. <tool_cal", "whole"),
        ("auto", "Let me see.\n" + call("add", x=3), "whole"),
        ("auto", call("add", x=3) + "\n" + call("now"), "whole"),
        ("auto", call("add", x=3) + " and so on", "no"),
        ("auto", call("add", x=3)[:-1], "more"),
        ("auto", "<tool_call> add", "no"),
        ("auto", call("sub", x=3), "no"),
        ("auto", call("add", x="3"), "no"),
        ("auto", call("add"), "no"),
        ("auto", call("add", x=3, y=4), "no"),
        ("auto", call("now", x=3), "no"),
        ("any", "Hello.", "no"),
        ("any", "", "more"),
        ("any", call("now"), "whole"),
        ("any", call('say 你"好\\', text="a\n</tool_call> 你好"), "whole"),
        ("any", call("plant", tree={"left": {"left": {}}}), "whole"),
        ("any", call("plant", tree={"right": {}}), "no"),
        ("required", call("now"), "whole"),
        (True, call("add", x=-1), "whole"),
        ("add", call("add", x=1), "whole"),
        ("add", call("now"), "no"),
        ("add", call("add", x=1) + "\n" + call("add", x=2), "no"),
        ({"type": "function", "function": {"name": "now"}}, call("now"), "whole"),
        ({"type": "tool", "name": "now"}, call("add", x=1), "no"),
    ],
)
def test_each_choice_of_tools_is_enforced(verdict, choice, text, expected):
    assert verdict(ReplyForm.from_openai(TOOLS, choice), text) == expected


@pytest.mark.parametrize("choice", ["none", False])
def test_without_a_choice_an_answer_is_free(choice):
    form = ReplyForm.from_openai(TOOLS, choice)
    assert form.is_text
    assert form.params(SamplingParams(stop=["x"]), Thoughts()) == SamplingParams(stop=["x"])
    assert parse_reply(call("now"), form.parser(Thoughts())).text == call("now")


@pytest.mark.parametrize(
    ("parallel", "choice", "several"),
    [(None, "any", True), (True, "any", True), (False, "any", False), (None, "now", False), (True, "now", True)],
)
def test_several_calls_only_where_they_may_be(verdict, parallel, choice, several):
    twice = call("now") + "\n" + call("now")
    assert verdict(ReplyForm.from_openai(TOOLS, choice, parallel), twice) == ("whole" if several else "no")


def test_a_model_that_is_lost_does_not_call_for_ever(verdict):
    form = ReplyForm.from_openai(TOOLS, "any")
    assert verdict(form, "\n".join([call("now")] * MOST_CALLS)) == "whole"
    assert verdict(form, "\n".join([call("now")] * (MOST_CALLS + 1))) == "no"


def test_an_object_in_place_of_a_text(verdict):
    assert verdict(ReplyForm.from_openai(response_format=OBJECT), '{"ok": true}') == "whole"
    assert verdict(ReplyForm.from_openai(response_format=OBJECT), "ok") == "no"
    assert verdict(ReplyForm.from_openai(response_format={"type": "json_object"}), '{"a": [1, null]}') == "whole"
    assert verdict(ReplyForm.from_openai(response_format={"type": "json_object"}), "[1]") == "no"
    both = ReplyForm.from_openai(TOOLS, "auto", response_format=OBJECT)
    assert verdict(both, '{"ok": false}') == "whole"
    assert verdict(both, call("now")) == "whole"
    assert verdict(both, "Hello.") == "no"
    assert verdict(ReplyForm.from_openai(TOOLS, "any", response_format=OBJECT), '{"ok": false}') == "no"
    assert ReplyForm.from_openai(response_format={"type": "text"}).is_text


def test_a_class_is_a_response_format(verdict):
    class Weather(BaseModel):
        degrees: int

    assert verdict(ReplyForm.from_openai(response_format=Weather), '{"degrees": -3}') == "whole"


@pytest.mark.parametrize(
    ("thinking", "text", "expected"),
    [
        ("never", "<think>a</think>" + call("now"), "no"),
        ("optional", call("now"), "whole"),
        ("optional", "<think>\n<tool_call> or not?\n</think>\n\n" + call("now"), "whole"),
        ("optional", "<think>a", "more"),
        ("optional", "<think>a</think>\n\n\n" + call("now"), "no"),
        ("optional", "\n<think>a</think>" + call("now"), "whole"),
        ("opened", call("now"), "more"),
        ("opened", "a</think>" + call("now"), "whole"),
    ],
)
def test_thoughts_come_before_calls(verdict, thinking, text, expected):
    assert verdict(ReplyForm.from_openai(TOOLS, "any"), text, thinking) == expected


@pytest.mark.parametrize("thinking", ["never", "optional", "opened"])
def test_thoughts_come_before_text(verdict, thinking):
    begin = {"never": "", "optional": "<think>", "opened": ""}[thinking]
    thoughts = "" if thinking == "never" else f"{begin}Shall I <tool_call>?</think>"
    form = ReplyForm.from_openai(TOOLS, "auto")
    for text, expected in [("\n\n\n\nHello.", "whole"), ("Hm: " + call("now"), "whole"), ("<tool_call>x", "no")]:
        assert verdict(form, thoughts + text, thinking) == expected


@pytest.mark.parametrize("blank", ["", " ", "\n", "\n\n", "\t", "\u2003", "\x1c"])
def test_what_the_parser_takes_for_a_thought_is_no_call(verdict, blank):
    form = ReplyForm.from_openai(TOOLS, "auto")
    inside, behind = f"{blank}<think>{call('now')}", f"{blank}<think></think>{call('now')}"
    assert verdict(form, inside, "optional") in {"more", "no"}, "or a call would be lost in the thoughts"
    if verdict(form, behind, "optional") == "whole":
        assert parse_reply(behind, form.parser(Thoughts("optional"))).calls == (Call("now", {}),)
    else:
        assert blank not in {"", " ", "\n", "\n\n"}


def test_stop_strings_cut_texts_only():
    given = SamplingParams(stop=["x"], max_new_tokens=5)
    assert ReplyForm.from_openai(TOOLS, "auto").params(given, Thoughts()).stop == ("x",)
    assert ReplyForm.from_openai(TOOLS, "any").params(given, Thoughts()).stop == ()
    held = ReplyForm.from_openai(response_format=OBJECT).params(given, Thoughts())
    assert (held.stop, held.max_new_tokens) == ((), 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tools": TOOLS, "tool_choice": "sub"}, r"'sub': choose .* \('add', 'now'"),
        ({"tool_choice": "any"}, "there are no tools"),
        ({"tool_choice": "sub"}, "there are none"),
        ({"tools": TOOLS, "tool_choice": 3}, "is 3: choose"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {}}}, "is None: choose"),
        ({"tools": [NOW, ADD, tool("now", {"x": {}})]}, "Two different tools are called 'now'"),
        ({"tools": [{"name": "now"}]}, "is not a tool"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "is not a tool"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]},
            "are not a schema: this is not JSON",
        ),
        ({"tools": [tool("a", {"x": {"const": {1, 2}}})]}, "of tool 'a' are not a schema: a schema is plain JSON"),
        ({"tools": [tool("a", {"x": {"const": float("nan")}})]}, "tool 'a' are not a schema: a schema is plain JSON"),
        ({"tools": [tool("a", {"x": {"const": "\ud800"}})]}, "of tool 'a' are not a schema: it holds half a character"),
        ({"tools": [tool("a", type="array")]}, "of tool 'a' are not a JSON schema of an object"),
        ({"tools": "abc"}, "tools is 'abc': give a list"),
        ({"response_format": {**OBJECT, "json_schema": {"schema": {"const": {1, 2}}}}}, "response_format is not valid"),
        ({"response_format": {"type": "xml"}}, "response_format is"),
        ({"response_format": {"type": "json_schema"}}, "response_format is"),
        ({"response_format": "json"}, "response_format is"),
    ],
)
def test_what_is_no_form_is_refused(arguments, message):
    with pytest.raises(SamplingError, match=message):
        ReplyForm.from_openai(**arguments)


def test_a_mapping_names_a_tool_whatever_its_name():
    for name in ("none", "auto", "any"):
        form = ReplyForm.from_openai([tool(name), NOW], {"type": "function", "function": {"name": name}})
        assert (form.calls, form.named) == ("must", name)
    assert ReplyForm.from_openai([NOW], {"type": "any"}).calls == "must"


def test_a_tool_given_twice_counts_once():
    assert [tool.name for tool in ReplyForm.from_openai([NOW, ADD, NOW]).tools] == ["now", "add"]


def test_two_constraints_are_refused():
    for form, name in [
        (ReplyForm.from_openai(TOOLS), "tools that may be called"),
        (ReplyForm.from_openai(response_format=OBJECT), "response_format"),
    ]:
        with pytest.raises(SamplingError, match=f"{name} and regex are given"):
            form.params(SamplingParams(regex="a"), Thoughts())


def test_a_schema_that_cannot_be_followed_is_refused_if_that_is_asked_for():
    odd = tool("odd", {"x": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}})
    with pytest.raises(SamplingError, match=r"^Tool 'odd': .*properties\.x"):
        ReplyForm.from_openai([odd], "any", strict=True).params(SamplingParams(), Thoughts())
    odd["function"]["strict"] = True
    with pytest.raises(SamplingError, match=r"^Tool 'odd': .*properties\.x"):
        ReplyForm.from_openai([odd], "any").params(SamplingParams(), Thoughts())
