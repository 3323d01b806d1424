"""What the tests of LlamaIndex share: a small index, ears for events, and counts by transformers itself."""

import asyncio

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.node_parser import SentenceSplitter
from transformers import AutoTokenizer

from deepen_core.demo import documents
from deepen_integrations.llama_index import HashingEmbedding

QUESTION = "Where does Mira live?"
USER = [ChatMessage(role="user", content=QUESTION)]


def index_of(number=4, chunk_size=128):
    """An index of some documents of the demo's world, cut by the tokenizer that the settings have now.

    Its nodes have the same ids each time: of nodes that are equally near, the ids say which comes first.
    """
    splitter = SentenceSplitter(
        chunk_size=chunk_size,
        chunk_overlap=0,
        chunking_tokenizer_fn=lambda text: [text],
        id_func=lambda place, document: f"{document.node_id}, {place}",
    )
    texts = [Document(text=document.text, id_=str(place)) for place, document in enumerate(documents()[:number])]
    return VectorStoreIndex.from_documents(texts, embed_model=HashingEmbedding(), transformations=[splitter])


def text_of(response):
    return response.message.content if hasattr(response, "message") else response.text


async def gathered(stream):
    return [one async for one in stream]


class Events(BaseEventHandler):
    """Keeps every event."""

    seen: list = []

    @classmethod
    def class_name(cls):
        return "Events"

    def handle(self, event, **kwargs):
        self.seen.append(event)

    def named(self, *names):
        return [event for event in self.seen if event.class_name() in names]


class Counting:
    """How many tokens transformers' own tokenizer of a member makes of a prompt.

    Args:
        folder: The member's folder.
    """

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def prompt(self, prompt):
        """Of a text, BOS included; or of messages by the chat template."""
        if isinstance(prompt, str):
            return len(self.tokenizer(prompt)["input_ids"])
        messages = [{"role": m.role.value, "content": m.content} for m in prompt]
        return len(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])

    def answer(self, text):
        """Of an answer."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


ENDPOINTS = {
    "complete": lambda llm, **options: llm.complete(QUESTION, **options),
    "chat": lambda llm, **options: llm.chat(USER, **options),
    "stream_complete": lambda llm, **options: list(llm.stream_complete(QUESTION, **options)),
    "stream_chat": lambda llm, **options: list(llm.stream_chat(USER, **options)),
}


async def _astream_complete(llm, **options):
    return await gathered(await llm.astream_complete(QUESTION, **options))


async def _astream_chat(llm, **options):
    return await gathered(await llm.astream_chat(USER, **options))


ASYNC_ENDPOINTS = {
    "acomplete": lambda llm, **options: llm.acomplete(QUESTION, **options),
    "achat": lambda llm, **options: llm.achat(USER, **options),
    "astream_complete": _astream_complete,
    "astream_chat": _astream_chat,
}

EIGHT = [*ENDPOINTS, *ASYNC_ENDPOINTS]


def called(llm, endpoint, **options):
    """All responses of a call, from whichever kind of endpoint."""
    if endpoint in ENDPOINTS:
        found = ENDPOINTS[endpoint](llm, **options)
    else:
        found = asyncio.run(ASYNC_ENDPOINTS[endpoint](llm, **options))
    return found if isinstance(found, list) else [found]
