"""The frameworks' own clients for OpenAI's protocol against a server of the demo."""

import json
from typing import Literal

import pytest
from langchain_openai import ChatOpenAI, OpenAI
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from serve_parts import sequences_held, until

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.usefixtures("loop_of_llama_index")]
QUESTION = "Where does Felix live?"
ASKED = [{"role": "user", "content": QUESTION}]


class Home(BaseModel):
    """Where somebody lives."""

    city: Literal["Lisbon", "Oslo"]


def look_up(name: Literal["Anna", "Felix"]) -> str:
    """Looks up what is written about a person."""
    return f"{name} lives in Lisbon."


@pytest.fixture
def chat(server):
    return ChatOpenAI(model="demo", base_url=server.url, api_key=server.key, max_retries=0, max_tokens=120)


@pytest.fixture
def llm(server):
    return OpenAILike(
        model="demo",
        api_base=server.url,
        api_key=server.key,
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
        max_tokens=120,
        temperature=0.0,
    )


@pytest.fixture
def expected(served_demo):
    return served_demo.generate(ASKED, max_new_tokens=120)


class TestLangChain:
    def test_chat(self, chat, expected):
        answer = chat.invoke(QUESTION)
        assert answer.content == expected.text
        assert answer.usage_metadata["output_tokens"] == expected.usage.completion_tokens
        assert answer.response_metadata["finish_reason"] == "stop"

    async def test_streams(self, chat, expected):
        assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == expected.text
        assert "".join([chunk.text async for chunk in chat.astream(QUESTION)]) == expected.text

    def test_tools(self, chat):
        bound = chat.bind_tools([look_up], tool_choice="required", parallel_tool_calls=False)
        call = bound.invoke(QUESTION).tool_calls[0]
        assert (call["name"], call["args"].keys()) == ("look_up", {"name"})
        streamed = None
        for chunk in bound.stream(QUESTION):
            streamed = chunk if streamed is None else streamed + chunk
        assert streamed.tool_calls[0]["args"] == call["args"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_call_that_is_cut_off_is_no_call(self, chat, stream):
        bound = chat.bind_tools([look_up], tool_choice="required").bind(max_tokens=12)
        if stream:
            streamed = None
            for chunk in bound.stream(QUESTION):
                streamed = chunk if streamed is None else streamed + chunk
            assert streamed.tool_calls == []
        else:
            assert bound.invoke(QUESTION).tool_calls == []

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_objects(self, chat, method):
        assert chat.with_structured_output(Home, method=method).invoke(QUESTION).city in {"Lisbon", "Oslo"}

    def test_logprobs(self, chat):
        answer = chat.bind(logprobs=True, top_logprobs=2, max_tokens=3).invoke(QUESTION)
        assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2

    def test_a_stream_that_is_left(self, chat, served_demo):
        pieces = chat.bind(max_tokens=900, extra_body={"ignore_eos": True}).stream(QUESTION)
        next(pieces)
        pieces.close()
        assert until(lambda: sequences_held(served_demo) == 0, 5)

    def test_texts(self, server, served_demo):
        llm = OpenAI(model="demo", base_url=server.url, api_key=server.key, max_tokens=5, temperature=0)
        prompts = ["Felix lives", "Anna works"]
        assert llm.batch(prompts) == [each.text for each in served_demo.generate(prompts, max_new_tokens=5)]

    def test_errors(self, chat):
        with pytest.raises(Exception, match="temperature") as caught:
            chat.bind(temperature=-1).invoke(QUESTION)
        assert caught.value.status_code == 400


class TestLlamaIndex:
    async def test_chat_and_streams(self, llm, expected):
        asked = [ChatMessage(content=QUESTION)]
        assert llm.chat(asked).message.content == expected.text
        assert "".join(piece.delta or "" for piece in llm.stream_chat(asked)) == expected.text
        pieces = await llm.astream_chat(asked)
        assert "".join([piece.delta or "" async for piece in pieces]) == expected.text

    def test_texts(self, server, served_demo):
        llm = OpenAILike(
            model="demo", api_base=server.url, api_key=server.key, max_tokens=5, temperature=0.0, max_retries=0
        )
        assert llm.complete("Felix lives").text == served_demo.generate("Felix lives", max_new_tokens=5).text
        assert "".join(p.delta for p in llm.stream_complete("Felix lives")) == llm.complete("Felix lives").text

    def test_tools(self, llm):
        answer = llm.chat_with_tools([FunctionTool.from_defaults(look_up)], QUESTION, tool_required=True)
        calls = llm.get_tool_calls_from_response(answer)
        assert calls[0].tool_name == "look_up"
        assert calls[0].tool_kwargs["name"] in {"Anna", "Felix"}

    def test_a_call_that_is_cut_off_is_no_call(self, llm):
        tools = [FunctionTool.from_defaults(look_up)]
        llm.max_tokens = 12
        answer = llm.chat_with_tools(tools, QUESTION, tool_required=True)
        assert llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False) == []

    def test_objects(self, llm):
        schema = {"type": "json_schema", "json_schema": {"name": "Home", "schema": Home.model_json_schema()}}
        answer = llm.chat([ChatMessage(content=QUESTION)], response_format=schema)
        assert json.loads(answer.message.content)["city"] in {"Lisbon", "Oslo"}
        assert llm.as_structured_llm(Home).chat([ChatMessage(content=QUESTION)]).raw.city in {"Lisbon", "Oslo"}

    def test_a_stream_that_is_left(self, llm, served_demo):
        pieces = llm.stream_chat([ChatMessage(content=QUESTION)], max_tokens=900, extra_body={"ignore_eos": True})
        next(pieces)
        pieces.close()
        del pieces
        assert until(lambda: sequences_held(served_demo) == 0, 5)
