"""Chat engines of LlamaIndex on real members, and mid-stream errors in everything that reads streams."""

import asyncio
import subprocess
import sys
from collections import Counter

import pytest
from llama_index.core.agent.workflow import AgentStream, ReActAgent
from llama_index.core.tools import FunctionTool
from llama_index_parts import QUESTION, gathered, index_of
from scheduler_parts import hook

from deepen_core import Ensemble
from deepen_core.errors import MemberError
from deepen_integrations.llama_index import DeepenLLM, configure_settings

pytestmark = [
    pytest.mark.usefixtures("loop_of_llama_index", "fresh_settings"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # agents use old names
]

ENGINES = ["simple", "context", "condense_question", "condense_plus_context"]
SECOND = "And where does Felix live?"


@pytest.fixture(params=["texts", "chats"])
def llm(request, reading_ensembles):
    # LlamaIndex strips what it remembers of a stream, so answers have no blanks at their ends.
    llm = DeepenLLM.from_ensemble(reading_ensembles[request.param], regex="[a-z]{3}", max_new_tokens=6)
    configure_settings(llm)
    return llm


_memories = []


def engine_of(llm, mode):
    engine = index_of().as_chat_engine(chat_mode=mode, llm=llm, similarity_top_k=1)
    _memories.append(engine._memory)
    return engine


@pytest.fixture(autouse=True)
def _closed_memories():
    """LlamaIndex never closes the databases in which chat engines remember."""
    yield
    while _memories:
        database = _memories.pop().sql_store._async_engine
        if database is not None:
            asyncio.run(database.dispose())


def chats(llm, mode):
    engine = engine_of(llm, mode)
    return [engine.chat(asked).response for asked in (QUESTION, SECOND)], engine.chat_history


def streams(llm, mode):
    engine = engine_of(llm, mode)
    return ["".join(engine.stream_chat(asked).response_gen) for asked in (QUESTION, SECOND)], engine.chat_history


async def achats(llm, mode):
    engine = engine_of(llm, mode)
    return [(await engine.achat(asked)).response for asked in (QUESTION, SECOND)], engine.chat_history


async def astreams(llm, mode):
    engine, said = engine_of(llm, mode), []
    for asked in (QUESTION, SECOND):
        response = await engine.astream_chat(asked)
        said.append("".join(await gathered(response.async_response_gen())))
    return said, engine.chat_history


@pytest.mark.parametrize("mode", ENGINES)
def test_chat_engines_answer_alike_in_all_four_ways_and_remember(llm, events, mode):
    answers, history = chats(llm, mode)
    assert [message.role.value for message in history] == ["user", "assistant"] * 2
    assert [message.content for message in history[::2]] == [QUESTION, SECOND]
    assert [message.content for message in history[1::2]] == answers
    assert all(answers)
    # The second question is put anew first, where the engine condenses.
    assert len(events.named("LLMChatEndEvent", "LLMCompletionEndEvent")) == (3 if "condense" in mode else 2)
    for said, kept in (streams(llm, mode), asyncio.run(achats(llm, mode)), asyncio.run(astreams(llm, mode))):
        assert [text.strip() for text in said] == [text.strip() for text in answers]
        assert [message.content.strip() for message in kept] == [message.content.strip() for message in history]


def test_a_window_of_256_or_less_is_told_before_anything_is_loaded():
    """In a process of its own: LlamaIndex opens the memory's database before it refuses, and never closes it."""
    code = f"""
from llama_index.core import Document, VectorStoreIndex
from deepen_integrations.llama_index import DeepenLLM, HashingEmbedding
llm = DeepenLLM.demo(context_window=256)
index = VectorStoreIndex.from_documents([Document(text="a")], embed_model=HashingEmbedding())
for mode in {ENGINES}:
    try:
        index.as_chat_engine(chat_mode=mode, llm=llm)
    except ValueError as error:
        print(mode, error, llm._held()._loaded is None)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.count("Token limit must be set and greater than 0") == len(ENGINES), run.stdout
    assert run.stdout.count("True\n") == len(ENGINES)


def test_a_long_conversation_is_cut_by_the_memory_and_fits(reading_ensembles):
    llm = DeepenLLM.from_ensemble(reading_ensembles["chats"], max_new_tokens=6, ignore_eos=True)
    configure_settings(llm)
    engine = engine_of(llm, "simple")
    for turn in range(12):
        assert engine.chat(f"{turn}. " + "The quick brown fox jumps over the lazy dog. " * 12).response
    told = sum(llm.ensemble.count_tokens(message.content) for message in engine.chat_history)
    assert told > llm.metadata.context_window


# Errors in the middle of a stream


@pytest.fixture(params=["texts", "chats"])
def failing(request, reading_folders):
    """A member fails at the third token of each answer."""
    with Ensemble.load(reading_folders[request.param], progress=False) as ensemble:
        member = hook(ensemble, 1)

        def fail(rows):
            if any(len(row.ids) > row.prompt_tokens + 2 for row in rows):
                raise RuntimeError("the fan has stopped")

        member.fail = fail
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=20, ignore_eos=True)
        configure_settings(llm)
        yield llm


FAILS = "Member 'two' failed.*the fan has stopped"


def test_in_a_query_engine(failing):
    engine = index_of().as_query_engine(llm=failing, streaming=True)
    pieces = engine.query(QUESTION).response_gen
    assert next(pieces)
    with pytest.raises(MemberError, match=FAILS):
        list(pieces)

    async def ask():
        return await gathered((await engine.aquery(QUESTION)).async_response_gen())

    with pytest.raises(MemberError, match=FAILS):
        asyncio.run(ask())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # LlamaIndex raises there as well
@pytest.mark.parametrize("mode", ENGINES)
def test_in_a_chat_engine(failing, mode):
    with pytest.raises(MemberError, match=FAILS):
        list(engine_of(failing, mode).stream_chat(QUESTION).response_gen)

    async def ask():
        return await gathered((await engine_of(failing, mode).astream_chat(QUESTION)).async_response_gen())

    with pytest.raises(MemberError, match=FAILS):
        asyncio.run(ask())


@pytest.mark.parametrize("streaming", [False, True])
def test_in_an_agent(failing, streaming):
    agent = ReActAgent(
        tools=[FunctionTool.from_defaults(lambda name: name, name="who", description="Who it is.")],
        llm=failing,
        streaming=streaming,
    )
    streamed = Counter()

    async def run():
        handler = agent.run(QUESTION)
        async for event in handler.stream_events():
            streamed[type(event)] += 1
        return await handler

    with pytest.raises(MemberError, match=FAILS):
        asyncio.run(run())
    assert bool(streamed[AgentStream]) is streaming
