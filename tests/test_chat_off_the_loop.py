"""Chat adapters read a large request and prepare it beside the event loop, which it would hold up."""

import asyncio
import threading
from contextlib import suppress

import pytest
from llama_index.core.llms import ChatMessage

from deepen_core.errors import ContextWindowError
from deepen_integrations.chat import ChatRequest
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.llama_index import DeepenLLM

_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "x",
        "schema": {"type": "object", "properties": {f"property {n}": {"type": "boolean"} for n in range(200)}},
    },
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


def _langchain(llm, text, streamed, options):
    return _whole(llm.astream(text, **options)) if streamed else llm.ainvoke(text, **options)


async def _llama_index(llm, text, streamed, options):
    messages = [ChatMessage(role="user", content=text)]
    return await (_whole(await llm.astream_chat(messages, **options)) if streamed else llm.achat(messages, **options))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("text", "options", "beside"),
    [("hi", {}, False), ("word " * 5000, {}, True), ("hi", {"response_format": _FORMAT}, True)],
    ids=["small", "text", "schema"],
)
@pytest.mark.parametrize(("adapter", "ask"), [(ChatDeepen, _langchain), (DeepenLLM, _llama_index)])
def test_large_requests_are_prepared_in_other_threads(pair, threads, adapter, ask, text, options, beside, streamed):
    llm = adapter.from_ensemble(pair)
    if adapter is DeepenLLM and options:
        options = {"json_schema": options["response_format"]["json_schema"]["schema"]}

    async def asked():
        with suppress(ContextWindowError, ValueError):
            await ask(llm, text, streamed, {"max_tokens" if adapter is ChatDeepen else "max_new_tokens": 2, **options})
        return threading.current_thread()

    loop = asyncio.run(asked())
    assert threads
    assert {thread is not loop for thread in threads} == {beside}
