"""LangChain's messages and LlamaIndex's responses carry the trace of an answer, whole and streamed."""

import json

import pytest
from llama_index.core.llms import ChatMessage

from deepen_core.tracing import Trace
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaDeepen

QUESTION = "Where does Felix live?"
STORY = "Anna's home is in"
pytestmark = pytest.mark.usefixtures("needs_demo", "loop_of_llama_index")


def added(chunks):
    found = chunks[0]
    for chunk in chunks[1:]:
        found = found + chunk
    return found


def test_messages():
    chat = ChatDeepen.demo()
    assert "trace" not in chat.invoke(QUESTION).response_metadata
    message = chat.invoke(QUESTION, trace=True)
    told = message.response_metadata["trace"]
    assert json.loads(json.dumps(told)) == told
    trace = Trace.from_dict(told)
    assert "".join(trace.pieces()) == message.content
    chunks = list(chat.stream(QUESTION, trace=True))
    assert "main" not in chunks[0].response_metadata["trace"]
    whole = added(chunks)
    assert whole.content == message.content
    assert Trace.from_dict(whole.response_metadata["trace"]) == trace
    assert "<html" in trace.to_html(QUESTION)


def test_a_field_traces_every_call():
    llm = DeepenLLM.demo(trace=True, max_new_tokens=8)
    llm.invoke(STORY)  # from now on its likelihood is known, and the prompt run alike each time, bit by bit
    answer = llm.generate([STORY]).generations[0][0]
    trace = Trace.from_dict(answer.generation_info["trace"])
    assert "".join(trace.pieces()) == answer.text
    assert Trace.from_dict(added(list(llm._stream(STORY))).generation_info["trace"]) == trace


async def test_what_langchain_streams_of_itself_has_it_whole():
    llm = DeepenLLM.demo(trace=True, max_new_tokens=8)
    seen = [event async for event in llm.astream_events(STORY, version="v2")]
    (ended,) = [event for event in seen if event["event"] == "on_llm_end"]
    (answer,) = ended["data"]["output"]["generations"][0]
    trace = Trace.from_dict(answer["generation_info"]["trace"])
    assert trace.steps
    assert "".join(trace.pieces()) == answer["text"] == llm.invoke(STORY)


def test_responses():
    llm = LlamaDeepen.demo(trace=True)
    response = llm.chat([ChatMessage(role="user", content=QUESTION)])
    trace = Trace.from_dict(response.raw["trace"])
    assert "".join(trace.pieces()) == response.message.content
    parts = list(llm.stream_chat([ChatMessage(role="user", content=QUESTION)]))
    assert Trace.from_dict(parts[-1].raw["trace"]) == trace
    told = [Trace.from_dict(part.additional_kwargs["trace"]) for part in parts]
    assert [step for part in told for step in part.steps] == list(trace.steps)
    parts = list(llm.stream_complete(QUESTION))
    told = [Trace.from_dict(part.additional_kwargs["trace"]) for part in parts]
    assert [step for part in told for step in part.steps] == list(Trace.from_dict(parts[-1].raw["trace"]).steps)
    assert "trace" not in LlamaDeepen.demo().complete(QUESTION).raw
