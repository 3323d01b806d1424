"""Tools of every kind and every choice among them: what an answer may call is what was bound."""

import re

import jsonschema
import pytest
from langchain_parts import WAYS, asked
from tool_kinds import TOOLS, Tree, check, choose, later, now, plain, shown

from deepen_core.constraints import grammar
from deepen_core.errors import ContextWindowError, SamplingError
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.langchain.tools import tool_definition

SOME_WAYS = [pytest.param(way, marks=[] if way in ("invoke", "astream") else pytest.mark.slow) for way in WAYS]


@pytest.fixture(scope="module")
def chat(terse):
    return ChatDeepen.from_ensemble(terse, max_tokens=300)


@pytest.mark.parametrize("way", SOME_WAYS)
@pytest.mark.parametrize("kind", TOOLS)
async def test_arguments_follow_schemas_of_every_kind(chat, kind, way):
    some = TOOLS[kind]
    bound = chat.bind_tools([some], tool_choice="any", parallel_tool_calls=False)
    for options in ({}, {"temperature": 1.0, "seed": 5}) if way == "invoke" else ({},):
        answer = await asked(bound, way, "hi", **options)
        assert answer.response_metadata["finish_reason"] == "tool_calls"
        (call,) = answer.tool_calls
        check([call], [some])
        assert answer.content == ""
        assert "user" not in call["args"]


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("recursive class", {"kind": "青", "left": {"kind": "rouge"}}, {"kind": "青", "left": {"kind": "blue"}}),
        ("class of pydantic v1", {"color": "青", "count": 1}, {"color": "blue", "count": 1}),
        ("schema with $ref", {"at": "here"}, {"at": "elsewhere"}),
        ("union of objects", {"right": True}, {}),
        ("injected", {"thing": "hat"}, {"user": "Mira"}),
        ("nested", {"size": {"cm": 1, "exact": True}, "sizes": []}, {"size": {"cm": 100, "exact": True}, "sizes": []}),
        ("TypedDict", {"to": "東京", "steps": [1]}, {"to": "Oslo", "steps": [1]}),
    ],
)
def test_nothing_of_a_schema_is_lost(kind, right, wrong):
    parameters = jsonschema.Draft202012Validator(tool_definition(TOOLS[kind])["function"]["parameters"])
    assert parameters.is_valid(right)
    assert not parameters.is_valid(wrong)


def test_a_schema_is_read_once(terse, monkeypatch):
    """As it is and with bounds, wherever it is bound, called and decoded."""
    read, checked = [], grammar.checked_schema
    monkeypatch.setattr(grammar, "checked_schema", lambda schema, problem: read.append(1) or checked(schema, problem))
    once = {"title": "once", "type": "object", "properties": {"x": {"const": "read once"}}, "required": ["x"]}
    bound = ChatDeepen.from_ensemble(terse, max_tokens=100).bind_tools([once], tool_choice="once")
    assert [bound.invoke("hi").tool_calls[0]["args"] for _ in "12"] == [{"x": "read once"}] * 2
    assert len(read) == 2


@pytest.mark.parametrize("words", [2_000, 20_000])
def test_what_tools_take_of_a_prompt_that_does_not_fit_is_told(terse, words):
    """Some clients send many tools with every question, and their users never see them."""
    long = {"title": "long", "description": "word " * words, "type": "object", "properties": {}}
    bound = ChatDeepen.from_ensemble(terse).bind_tools([long])
    with pytest.raises(ContextWindowError, match="characters describe tools") as caught:
        bound.invoke("hi")
    described = int(re.search(r"([\d,]+) of its characters describe tools", str(caught.value))[1].replace(",", ""))
    assert len("word " * words) < described < len("word " * words) + 200
    with pytest.raises(ContextWindowError) as plain:
        terse.generate([{"role": "user", "content": ["<tools>", "word " * words, "</tools>"]}])
    assert "describe tools" not in str(plain.value)


def test_members_see_unicode_as_it_is(ensemble):
    ChatDeepen.from_ensemble(ensemble).bind_tools([choose]).invoke("hi")
    (told, _) = ensemble.requests[-1][0]
    text = "".join(told["content"])
    assert "grün" in text
    assert "青" in text
    assert "\\u" not in text


def test_unicode_arguments_come_unescaped(ensemble):
    said = '<tool_call>\n{"name": "später", "arguments": {"text": "你好"}}\n</tool_call>'
    ensemble.answers["hi"] = said
    bound = ChatDeepen.from_ensemble(ensemble).bind_tools([later])
    assert bound.invoke("hi").tool_calls[0]["args"] == {"text": "你好"}
    (chunk,) = [c for message in bound.stream("hi") for c in message.tool_call_chunks]
    assert chunk["args"] == '{"text": "你好"}'


CHOICES = {
    "any": {"now", "plain", "Tree"},
    "required": {"now", "plain", "Tree"},
    True: {"now", "plain", "Tree"},
    "plain": {"plain"},
    "Tree": {"Tree"},
}


def named(name, style):
    return {
        "OpenAI": {"type": "function", "function": {"name": name}},
        "Anthropic": {"type": "tool", "name": name},
        "types": {"type": name},
    }[style]


@pytest.mark.parametrize("way", SOME_WAYS)
@pytest.mark.parametrize("choice", CHOICES)
async def test_a_choice_that_must_be_called(chat, choice, way):
    tools = [now, plain, Tree]
    answer = await asked(chat.bind_tools(tools, tool_choice=choice), way, "hi", temperature=1.0, seed=1)
    assert {call["name"] for call in answer.tool_calls} <= CHOICES[choice]
    check(answer.tool_calls, tools)
    assert answer.tool_calls
    if len(CHOICES[choice]) == 1:
        assert len(answer.tool_calls) == 1


@pytest.mark.parametrize("choice", [named("plain", "OpenAI"), named("plain", "Anthropic"), named("any", "types")])
def test_choices_as_mappings(chat, choice):
    answer = chat.bind_tools([now, plain], tool_choice=choice).invoke("hi")
    assert {call["name"] for call in answer.tool_calls} <= ({"now", "plain"} if "any" in str(choice) else {"plain"})
    assert answer.tool_calls


@pytest.mark.parametrize("choice", [None, "auto", {"type": "auto"}])
def test_a_free_choice(ensemble, choice):
    """Whether tools are called is up to the models; here they are made of rules."""
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    ensemble.answers |= {"ask": f" Let me see.\n{call}", "talk": " Hello."}
    bound = ChatDeepen.from_ensemble(ensemble).bind_tools([now], tool_choice=choice)
    assert shown(bound.invoke("ask")) == (" Let me see.", [("now", {})])
    assert shown(bound.invoke("talk")) == (" Hello.", [])
    assert all("<tool_call>" in params.grammar for _, params in ensemble.requests)


@pytest.mark.parametrize("choice", ["none", False, {"type": "none"}])
@pytest.mark.parametrize("way", WAYS)
async def test_no_choice(ensemble, chat, choice, way):
    said = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    ensemble.answers["ask"] = said
    answer = await asked(ChatDeepen.from_ensemble(ensemble).bind_tools([now], tool_choice=choice), way, "ask")
    assert shown(answer) == (said, [])
    assert ensemble.requests[-1][1].grammar is None
    plainly = await asked(chat, way, "hi", max_tokens=5)
    assert shown(await asked(chat.bind_tools([now], tool_choice=choice), way, "hi", max_tokens=5)) == shown(plainly)


@pytest.mark.parametrize(
    ("tools", "options", "error"),
    [
        ([now], {"tool_choice": "later"}, "'later': choose 'auto', 'none', 'any' or the name of a tool \\('now'\\)"),
        ([], {"tool_choice": "any"}, "there are no tools"),
        ([5], {}, "This is not a tool"),
        ([{"type": "web_search"}], {}, "is not a tool"),
        ([{"title": "a", "type": "array", "items": {}}], {}, "not a JSON schema of an object"),
        ([now, {"title": "now", "type": "object", "properties": {"a": {}}}], {}, "Two different tools"),
        ([now], {"temprature": 1}, "did you mean 'temperature'"),
        ([now], {"regex": "a"}, "tools that may be called and regex are given"),
        ([now], {"response_format": {"type": "yaml"}}, "response_format is"),
    ],
)
def test_mistakes_are_told_where_tools_are_bound(loads, tools, options, error):
    with pytest.raises(SamplingError, match=error):
        ChatDeepen(models=["a"]).bind_tools(tools, **options)
    assert not loads


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", ["tools", "response_format"])
async def test_a_schema_that_cannot_be_followed_is_told_before_anything_is_loaded(loads, way, option):
    odd = {"type": "object", "properties": {"x": {"type": "array", "items": {}, "uniqueItems": True}}}
    given = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": odd}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": odd}},
    }[option]
    chat = ChatDeepen(models=["a"], strict=True)
    with pytest.raises(SamplingError, match=r"\$\.properties\.x: .*uniqueItems"):
        await asked(chat, way, "hi", **{option: given})
    with pytest.raises(SamplingError, match=r"\$\.properties\.x: .*uniqueItems"):
        chat.bind_tools(given) if option == "tools" else chat.bind_tools([], response_format=given)
    assert not loads
