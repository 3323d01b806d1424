"""Calls of tools: chosen, valid, whole or none at all, and the same in every way; points 49 to 51."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import InjectedToolArg, StructuredTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_parts import WAYS, asked
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from deepen_core import grammar
from deepen_core.errors import SamplingError
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.langchain.tools import tool_definition

ignores_beta = pytest.mark.filterwarnings("ignore:The method:langchain_core._api.LangChainBetaWarning")


@pytest.fixture(scope="module")
def chat(terse):
    return ChatDeepen.from_ensemble(terse, max_tokens=300)


# Tools of every kind


class Color(Enum):
    RED = "rouge"
    GREEN = "grün"
    BLUE = "青"


class Size(BaseModel):
    cm: int = Field(ge=0, le=99)
    exact: bool


class Tree(BaseModel):
    """Plant a tree."""

    kind: Color
    left: "Tree | None" = None


class Order(BaseModelV1):
    """Order something."""

    color: Color
    count: int


class Walk(TypedDict):
    """Go for a walk."""

    to: Annotated[Literal["Zürich", "東京"], ..., "where to"]
    steps: list[int]


@tool
def now() -> str:
    """Tell the time."""
    return "noon"


@tool
def nested(size: Size, sizes: Annotated[list[Size], Field(max_length=2)]) -> str:
    """Measure."""
    return "long"


@tool
def choose(
    color: Color, which: Literal["a", "ü", 'say "hi"'], either: bool | Literal["maybe"], name: str | None = None
) -> str:
    """Choose."""
    return "chosen"


@tool("später")
async def later(text: Annotated[str, Field(max_length=5)]) -> str:
    """Wait for it; its name is not ASCII."""
    return text


@tool
def whose(thing: Literal["hat"], user: Annotated[str, InjectedToolArg]) -> str:
    """Whose is it? The models never hear of the user."""
    return user


def plain(a: int, b: Literal[1, 2] = 1) -> int:
    """Add.

    Args:
        a: One.
        b: Another.
    """
    return a + b


async def _run(**arguments):
    return "done"


REMOTE = StructuredTool(
    name="remote",
    description="As a server describes it.",
    args_schema={"type": "object", "properties": {"at": {"$ref": "#/$defs/At"}}, "required": ["at"]}
    | {"$defs": {"At": {"enum": ["here", "there"]}}},
    coroutine=_run,
)
UNION = {
    "title": "move",
    "description": "Move.",
    "anyOf": [
        {"type": "object", "properties": {"left": {"type": "boolean"}}, "required": ["left"]},
        {"type": "object", "properties": {"right": {"type": "boolean"}}, "required": ["right"]},
    ],
}
ANTHROPIC = {"name": "look", "description": "Look.", "input_schema": {"type": "object", "properties": {}}}
OPENAI = convert_to_openai_tool(plain)
TOOLS = {
    "no arguments": now,
    "nested": nested,
    "enum, union, optional": choose,
    "unicode": later,
    "injected": whose,
    "function": plain,
    "recursive class": Tree,
    "class of pydantic v1": Order,
    "TypedDict": Walk,
    "schema with $ref": REMOTE,
    "union of objects": UNION,
    "as Anthropic has it": ANTHROPIC,
    "as OpenAI has it": OPENAI,
}


def check(calls, tools):
    """Every call is of a tool and valid by its schema, and has an id of its own."""
    functions = {d["function"]["name"]: d["function"] for d in map(tool_definition, tools)}
    for call in calls:
        schema = {"type": "object", **functions[call["name"]].get("parameters", {})}
        jsonschema.Draft202012Validator(schema).validate(call["args"])
        assert call["id"].startswith("call_")
    assert len({call["id"] for call in calls}) == len(calls)


def shown(message):
    """What a message says and calls, without ids."""
    return message.text, [(call["name"], call["args"]) for call in message.tool_calls]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TOOLS)
async def test_point_49_arguments_follow_schemas_of_every_kind(chat, kind, way):
    some = TOOLS[kind]
    bound = chat.bind_tools([some], tool_choice="any", parallel_tool_calls=False)
    for options in ({}, {"temperature": 1.0, "seed": 5}) if way == "invoke" else ({},):
        answer = await asked(bound, way, "hi", **options)
        assert answer.response_metadata["finish_reason"] == "stop"
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
def test_point_49_nothing_of_a_schema_is_lost(kind, right, wrong):
    parameters = jsonschema.Draft202012Validator(tool_definition(TOOLS[kind])["function"]["parameters"])
    assert parameters.is_valid(right)
    assert not parameters.is_valid(wrong)


def test_point_49_a_schema_is_read_once(terse, monkeypatch):
    """Where it is bound, in each call and in the engine."""
    read, checked = [], grammar.checked_schema
    monkeypatch.setattr(grammar, "checked_schema", lambda schema, problem: read.append(1) or checked(schema, problem))
    once = {"title": "once", "type": "object", "properties": {"x": {"const": "read once"}}, "required": ["x"]}
    bound = ChatDeepen.from_ensemble(terse, max_tokens=100).bind_tools([once], tool_choice="once")
    assert [bound.invoke("hi").tool_calls[0]["args"] for _ in "12"] == [{"x": "read once"}] * 2
    assert len(read) == 1


def test_point_49_members_see_unicode_as_it_is(ensemble):
    ChatDeepen.from_ensemble(ensemble).bind_tools([choose]).invoke("hi")
    (told, _) = ensemble.requests[-1][0]
    text = "".join(told["content"])
    assert "grün" in text
    assert "青" in text
    assert "\\u" not in text


def test_point_49_unicode_arguments_come_unescaped(ensemble):
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("choice", CHOICES)
async def test_point_49_a_choice_that_must_be_called(chat, choice, way):
    tools = [now, plain, Tree]
    answer = await asked(chat.bind_tools(tools, tool_choice=choice), way, "hi", temperature=1.0, seed=1)
    assert {call["name"] for call in answer.tool_calls} <= CHOICES[choice]
    check(answer.tool_calls, tools)
    assert answer.tool_calls
    if len(CHOICES[choice]) == 1:
        assert len(answer.tool_calls) == 1


@pytest.mark.parametrize("choice", [named("plain", "OpenAI"), named("plain", "Anthropic"), named("any", "types")])
def test_point_49_choices_as_mappings(chat, choice):
    answer = chat.bind_tools([now, plain], tool_choice=choice).invoke("hi")
    assert {call["name"] for call in answer.tool_calls} <= ({"now", "plain"} if "any" in str(choice) else {"plain"})
    assert answer.tool_calls


@pytest.mark.parametrize("choice", [None, "auto", {"type": "auto"}])
def test_point_49_a_free_choice(ensemble, choice):
    """Whether tools are called is up to the models; here they are made of rules."""
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    ensemble.answers |= {"ask": f" Let me see.\n{call}", "talk": " Hello."}
    bound = ChatDeepen.from_ensemble(ensemble).bind_tools([now], tool_choice=choice)
    assert shown(bound.invoke("ask")) == (" Let me see.", [("now", {})])
    assert shown(bound.invoke("talk")) == (" Hello.", [])
    assert all("<tool_call>" in params.grammar for _, params in ensemble.requests)


@pytest.mark.parametrize("choice", ["none", False, {"type": "none"}])
@pytest.mark.parametrize("way", WAYS)
async def test_point_49_no_choice(ensemble, chat, choice, way):
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
        ([5], {}, "This is no tool"),
        ([{"type": "web_search"}], {}, "is no tool"),
        ([{"title": "a", "type": "array", "items": {}}], {}, "no JSON schema of an object"),
        ([now, {"title": "now", "type": "object", "properties": {"a": {}}}], {}, "Two different tools"),
        ([now], {"temprature": 1}, "did you mean 'temperature'"),
        ([now], {"regex": "a"}, "tools that may be called and regex are given"),
        ([now], {"response_format": {"type": "yaml"}}, "response_format is"),
    ],
)
def test_point_49_mistakes_are_told_where_tools_are_bound(loads, tools, options, error):
    with pytest.raises(SamplingError, match=error):
        ChatDeepen(models=["a"]).bind_tools(tools, **options)
    assert not loads


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", ["tools", "response_format"])
async def test_point_53_a_schema_that_cannot_be_followed_is_told_before_anything_is_loaded(loads, way, option):
    odd = {"type": "object", "properties": {"x": {"type": "array", "items": {}, "uniqueItems": True}}}
    given = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": odd}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": odd}},
    }[option]
    chat = ChatDeepen(models=["a"])
    with pytest.raises(SamplingError, match=r"\$\.properties\.x: .*uniqueItems"):
        await asked(chat, way, "hi", **{option: given})
    with pytest.raises(SamplingError, match=r"\$\.properties\.x: .*uniqueItems"):
        chat.bind_tools(given) if option == "tools" else chat.bind_tools([], response_format=given)
    assert not loads


# Every way


@ignores_beta
@pytest.mark.parametrize("version", [None, "v1"])
async def test_point_50_every_way_calls_the_same(terse, version):
    own = {} if version is None else {"output_version": version}
    chat = ChatDeepen.from_ensemble(terse, max_tokens=300, temperature=1.0, **own)
    several = 0
    for seed in range(2):
        bound = chat.bind_tools([now, plain], tool_choice="any", seed=seed)
        answers = [await asked(bound, way, "hi") for way in WAYS]
        answers.append(bound.stream_events("hi", version="v3").output)
        later = await bound.astream_events("hi", version="v3")
        answers.append(await later.output)
        answers.append((await bound.abatch(["hi"]))[0])
        for answer in answers:
            assert shown(answer) == shown(answers[0])
            assert answer.usage_metadata == answers[0].usage_metadata
            check(answer.tool_calls, [now, plain])
            blocks = [b for b in answer.content_blocks if b["type"] == "tool_call"]
            assert [(b["name"], b["args"], b["id"]) for b in blocks] == [
                (c["name"], c["args"], c["id"]) for c in answer.tool_calls
            ]
        several += len(answers[0].tool_calls) > 1
    assert several


def test_point_50_parallel_calls_have_ids_and_places_of_their_own(ensemble):
    calls = "\n".join(f'<tool_call>\n{{"name": "plain", "arguments": {{"a": {n}}}}}\n</tool_call>' for n in range(3))
    ensemble.answers["hi"] = calls
    bound = ChatDeepen.from_ensemble(ensemble).bind_tools([plain])
    chunks = [c for message in bound.stream("hi") for c in message.tool_call_chunks]
    assert [c["index"] for c in chunks] == [0, 1, 2]
    assert [json.loads(c["args"]) for c in chunks] == [{"a": n} for n in range(3)]
    assert len({c["id"] for c in chunks}) == 3
    assert [call["args"] for call in bound.invoke("hi").tool_calls] == [{"a": n} for n in range(3)]
    assert {call["id"] for call in bound.invoke("hi").tool_calls}.isdisjoint(c["id"] for c in chunks)


def test_point_10_calls_texts_and_objects_at_once(terse):
    """Each row has its own grammar, or none."""
    chat = ChatDeepen.from_ensemble(terse, max_tokens=80)
    bound = chat.bind_tools([now], tool_choice="now")
    wanted = chat.bind_tools([], response_format={"type": "json_schema", "json_schema": {"schema": {"enum": ["a"]}}})

    def ask(number):
        if number % 4 == 0:
            return shown(bound.invoke("hi"))
        if number % 4 == 1:
            return shown(wanted.invoke("hi"))
        if number % 4 == 2:
            return shown(asyncio.run(asked(bound, "astream", "hi")))
        return shown(asyncio.run(asked(chat, "astream", "hi")))

    alone = [ask(number) for number in range(4)]
    assert alone[0] == ("", [("now", {})])
    assert alone[1] == ('"a"', [])
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == alone * 6


# What is no whole call


NO_CALLS = {
    "unknown tool": '<tool_call>\n{"name": "later", "arguments": {}}\n</tool_call>',
    "no JSON": "<tool_call>\nnow()\n</tool_call>",
    "arguments that are a list": '<tool_call>\n{"name": "now", "arguments": []}\n</tool_call>',
    "never closed": '<tool_call>\n{"name": "now", "arguments": {}}',
    "half": '<tool_call>\n{"name": "now", "arg',
    "only a tag": "<tool_call>",
}


@ignores_beta
@pytest.mark.parametrize("kind", NO_CALLS)
async def test_point_51_what_is_no_call_stays_text(ensemble, kind):
    """Real members are held to the grammar, so but for calls that are cut off this cannot come from them."""
    ensemble.answers["hi"] = NO_CALLS[kind]
    bound = ChatDeepen.from_ensemble(ensemble).bind_tools([now])
    answers = [await asked(bound, way, "hi") for way in WAYS]
    for answer in [*answers, bound.stream_events("hi", version="v3").output]:
        assert shown(answer) == (NO_CALLS[kind], [])
        assert answer.invalid_tool_calls == []


class TestPoint51:
    """A call that is cut off is never run: LangChain would complete `{"a": 1, "b": "tr` to a call."""

    @pytest.fixture
    def bound(self, chat):
        return chat.bind_tools([choose], tool_choice="choose")

    async def answers(self, bound, **options):
        answers = [await asked(bound, way, "hi", **options) for way in WAYS]
        answers.append(bound.stream_events("hi", version="v3", **options).output)
        later = await bound.astream_events("hi", version="v3", **options)
        return [*answers, await later.output]

    @ignores_beta
    async def test_point_51_by_length(self, bound):
        whole = bound.invoke("hi")
        needed = whole.usage_metadata["output_tokens"]
        for tokens in (1, 9, needed // 2, needed - 1):
            for answer in await self.answers(bound, max_tokens=tokens):
                assert answer.response_metadata["finish_reason"] == "length"
                assert answer.tool_calls == []
                assert answer.invalid_tool_calls == []
                assert "<tool_call>".startswith(answer.text[:11])
        for answer in await self.answers(bound, max_tokens=needed):
            assert shown(answer) == shown(whole)

    @ignores_beta
    async def test_point_51_by_time(self, bound):
        for answer in await self.answers(bound, timeout=0.0001):
            assert answer.response_metadata["finish_reason"] == "timeout"
            assert answer.tool_calls == []
            assert answer.invalid_tool_calls == []

    def test_point_51_a_stop_string_does_not_cut_what_must_be_a_call(self, bound):
        whole = bound.invoke("hi")
        assert shown(bound.invoke("hi", stop=["choose", '"'])) == shown(whole)
        assert shown(bound.bind(stop=["arguments"]).invoke("hi")) == shown(whole)

    async def test_point_51_by_a_stop_string_where_text_is_free(self, ensemble):
        ensemble.answers["hi"] = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
        bound = ChatDeepen.from_ensemble(ensemble).bind_tools([now])
        for way in WAYS:
            answer = await asked(bound, way, "hi", stop=["arguments"])
            assert answer.tool_calls == answer.invalid_tool_calls == []
            assert answer.text.startswith("<tool_call>")

    @pytest.mark.parametrize("version", ["v0", "v1"])
    async def test_point_51_in_both_versions_of_contents(self, terse, version):
        chat = ChatDeepen.from_ensemble(terse, max_tokens=30, output_version=version)
        for way in WAYS:
            answer = await asked(chat.bind_tools([choose], tool_choice="any"), way, "hi")
            assert answer.tool_calls == answer.invalid_tool_calls == []
            assert [block["type"] for block in answer.content_blocks] == ["text"]

    def test_point_51_no_chunk_holds_a_part_of_a_call(self, bound):
        chunks = list(bound.stream("hi"))
        calls = [c for chunk in chunks for c in chunk.tool_call_chunks]
        assert [json.loads(c["args"]) for c in calls] == [bound.invoke("hi").tool_calls[0]["args"]]
        assert not any(chunk.text for chunk in chunks)


def test_point_51_an_answer_may_hold_a_text_and_a_call_that_is_cut(ensemble):
    call = '<tool_call>\n{"name": "plain", "arguments": {"a": 1}}\n</tool_call>'
    ensemble.answers["hi"] = f" So:\n{call}\n<tool_call>\n{{"
    answer = ChatDeepen.from_ensemble(ensemble).bind_tools([plain]).invoke("hi")
    assert answer.tool_calls[0]["args"] == {"a": 1}
    assert answer.text.startswith(" So:")
    assert answer.text.endswith("<tool_call>\n{")


def test_point_50_what_is_called_goes_back_into_the_conversation(chat):
    """`AIMessage.tool_calls` of one answer are read by every member in the next prompt."""
    bound = chat.bind_tools([plain], tool_choice="any", parallel_tool_calls=False)
    answer = bound.invoke("hi")
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    result = StructuredTool.from_function(plain).invoke(call)
    again: Any = bound.invoke([("human", "hi"), answer, result])
    check(again.tool_calls, [plain])
