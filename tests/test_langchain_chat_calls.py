"""Calls of tools: the same in every way, and whole or none at all."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from amounts import seeds
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool
from langchain_parts import WAYS, asked
from tool_kinds import check, choose, now, plain, shown

from deepen_integrations.langchain import ChatDeepen

ignores_beta = pytest.mark.filterwarnings("ignore:The method:langchain_core._api.LangChainBetaWarning")


@pytest.fixture(scope="module")
def chat(terse):
    return ChatDeepen.from_ensemble(terse, max_tokens=300)


@ignores_beta
@pytest.mark.parametrize("version", [None, pytest.param("v1", marks=pytest.mark.slow)])
async def test_every_way_calls_the_same(terse, version):
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


def test_parallel_calls_have_ids_and_places_of_their_own(ensemble):
    calls = "\n".join(f'<tool_call>\n{{"name": "plain", "arguments": {{"a": {n}}}}}\n</tool_call>' for n in range(3))
    ensemble.answers["hi"] = calls
    bound = ChatDeepen.from_ensemble(ensemble).bind_tools([plain])
    chunks = [c for message in bound.stream("hi") for c in message.tool_call_chunks]
    assert [c["index"] for c in chunks] == [0, 1, 2]
    assert [json.loads(c["args"]) for c in chunks] == [{"a": n} for n in range(3)]
    assert len({c["id"] for c in chunks}) == 3
    assert [call["args"] for call in bound.invoke("hi").tool_calls] == [{"a": n} for n in range(3)]
    assert {call["id"] for call in bound.invoke("hi").tool_calls}.isdisjoint(c["id"] for c in chunks)


def test_whether_calls_are_parallel_is_a_field_and_an_option(ensemble):
    chat = ChatDeepen.from_ensemble(ensemble, parallel_tool_calls=False)
    grammars = []
    for model in (
        chat.bind_tools([plain], tool_choice="any"),
        chat.bind_tools([plain], tool_choice="any", parallel_tool_calls=True),
        chat.bind_tools([plain], tool_choice="any").bind(parallel_tool_calls=None),
        ChatDeepen.from_ensemble(ensemble).bind_tools([plain], tool_choice="any"),
    ):
        model.invoke("hi")
        grammars.append(ensemble.requests[-1][1].grammar)
    one, several, unsaid, usual = grammars
    assert one == unsaid != several == usual


def test_calls_texts_and_objects_at_once(terse):
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
}
CUT_CALLS = {
    "never closed": ("now", '<tool_call>\n{"name": "now", "arguments": {}}'),
    "half": ("now", '<tool_call>\n{"name": "now", "arg'),
    "half a name": (None, '<tool_call>\n{"name": "no'),
    "only a tag": (None, "<tool_call>"),
}


@ignores_beta
@pytest.mark.parametrize("kind", NO_CALLS)
async def test_what_is_no_call_stays_text(ensemble, kind):
    """Real members are held to the grammar, so but for calls that are cut off this cannot come from them."""
    ensemble.answers["hi"] = NO_CALLS[kind]
    bound = ChatDeepen.from_ensemble(ensemble).bind_tools([now])
    answers = [await asked(bound, way, "hi") for way in WAYS]
    for answer in [*answers, bound.stream_events("hi", version="v3").output]:
        assert shown(answer) == (NO_CALLS[kind], [])
        assert answer.invalid_tool_calls == []


@ignores_beta
@pytest.mark.parametrize("kind", CUT_CALLS)
async def test_what_is_half_a_call_is_neither_text_nor_call(ensemble, kind):
    name, said = CUT_CALLS[kind]
    ensemble.answers["hi"] = said
    bound = ChatDeepen.from_ensemble(ensemble).bind_tools([now])
    answers = [await asked(bound, way, "hi") for way in WAYS]
    for answer in [*answers, bound.stream_events("hi", version="v3").output]:
        assert shown(answer) == ("", [])
        assert [(cut["name"], cut["args"]) for cut in answer.invalid_tool_calls] == [(name, said)]


class TestTruncatedCalls:
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
    async def test_by_length(self, bound):
        whole = bound.invoke("hi")
        needed = whole.usage_metadata["output_tokens"]
        for tokens in (needed - 1, 9)[: len(seeds(4))]:  # the second one in a thorough run
            for answer in await self.answers(bound, max_tokens=tokens):
                assert answer.response_metadata["finish_reason"] == "length"
                assert (answer.text, answer.tool_calls) == ("", [])
                (cut,) = answer.invalid_tool_calls
                assert cut["args"].startswith("<tool_call>"[: len(cut["args"])])
                assert (cut["name"], cut["id"][:5]) == (None if '": "choose"' not in cut["args"] else "choose", "call_")
                # Whole messages have our error, LangChain's chunks none, and its events one of their own.
                assert (
                    cut["error"] in {None, "Failed to parse tool call arguments as JSON"} or "raise max" in cut["error"]
                )
        for answer in await self.answers(bound, max_tokens=needed):
            assert shown(answer) == shown(whole)

    @ignores_beta
    async def test_by_time(self, bound):
        for answer in await self.answers(bound, timeout=0.0001):
            assert answer.response_metadata["finish_reason"] == "timeout"
            assert answer.tool_calls == []
            assert answer.invalid_tool_calls == []

    def test_a_stop_string_does_not_cut_what_must_be_a_call(self, bound):
        whole = bound.invoke("hi")
        assert shown(bound.invoke("hi", stop=["choose", '"'])) == shown(whole)
        assert shown(bound.bind(stop=["arguments"]).invoke("hi")) == shown(whole)

    async def test_by_a_stop_string_where_text_is_free(self, ensemble):
        ensemble.answers["hi"] = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
        bound = ChatDeepen.from_ensemble(ensemble).bind_tools([now])
        for way in WAYS:
            answer = await asked(bound, way, "hi", stop=["arguments"])
            assert (answer.text, answer.tool_calls) == ("", [])
            assert [cut["args"] for cut in answer.invalid_tool_calls] == ['<tool_call>\n{"name": "now", "']

    @pytest.mark.parametrize("version", ["v0", "v1"])
    async def test_in_both_versions_of_contents(self, terse, version):
        chat = ChatDeepen.from_ensemble(terse, max_tokens=30, output_version=version)
        for way in WAYS:
            answer = await asked(chat.bind_tools([choose], tool_choice="any"), way, "hi")
            assert answer.tool_calls == []
            assert len(answer.invalid_tool_calls) == 1
            assert "text" not in [block["type"] for block in answer.content_blocks]

    def test_no_chunk_holds_a_part_of_a_call(self, bound):
        chunks = list(bound.stream("hi"))
        calls = [c for chunk in chunks for c in chunk.tool_call_chunks]
        assert [json.loads(c["args"]) for c in calls] == [bound.invoke("hi").tool_calls[0]["args"]]
        assert not any(chunk.text for chunk in chunks)


def test_an_answer_may_hold_a_text_and_a_call_that_is_cut(ensemble):
    call = '<tool_call>\n{"name": "plain", "arguments": {"a": 1}}\n</tool_call>'
    ensemble.answers["hi"] = f" So:\n{call}\n<tool_call>\n{{"
    answer = ChatDeepen.from_ensemble(ensemble).bind_tools([plain]).invoke("hi")
    assert answer.tool_calls[0]["args"] == {"a": 1}
    assert answer.text == " So:"
    assert [cut["args"] for cut in answer.invalid_tool_calls] == ["<tool_call>\n{"]


def test_what_is_called_goes_back_into_the_conversation(chat):
    """`AIMessage.tool_calls` of one answer are read by every member in the next prompt."""
    bound = chat.bind_tools([plain], tool_choice="any", parallel_tool_calls=False)
    answer = bound.invoke("hi")
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    result = StructuredTool.from_function(plain).invoke(call)
    again: Any = bound.invoke([("human", "hi"), answer, result])
    check(again.tool_calls, [plain])
