"""Chat adapters read a request and prepare it beside the event loop, which large schemas would hold up."""

import asyncio
import threading

import pytest
from llama_index.core.llms import ChatMessage

from deepen_integrations.chat import ChatRequest
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.llama_index import DeepenLLM

_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}}},
}


@pytest.fixture
def threads(monkeypatch):
    """The threads in which requests were prepared, and forms of replies read."""
    found = []
    for name in ("prepare", "__init__"):
        usual = getattr(ChatRequest, name)

        def watched(self, *args, usual=usual):
            found.append(threading.current_thread())
            return usual(self, *args)

        monkeypatch.setattr(ChatRequest, name, watched)
    return found


async def _whole(pieces):
    return [piece async for piece in pieces]


def _langchain(llm, *, streamed):
    options = {"response_format": _FORMAT}
    return _whole(llm.astream("hi", **options)) if streamed else llm.ainvoke("hi", **options)


async def _llama_index(llm, *, streamed):
    messages = [ChatMessage(role="user", content="hi")]
    return await (_whole(await llm.astream_chat(messages)) if streamed else llm.achat(messages))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("adapter", "ask"), [(ChatDeepen, _langchain), (DeepenLLM, _llama_index)])
def test_requests_are_prepared_in_other_threads(pair, threads, adapter, ask, streamed):
    llm = adapter.from_ensemble(pair)

    async def asked():
        assert await ask(llm, streamed=streamed)
        return threading.current_thread()

    loop = asyncio.run(asked())
    assert len(threads) >= 2
    assert loop not in threads
