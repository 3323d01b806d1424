"""DeepenLLM in LlamaIndex on event loops: the same answers, nobody held up, nothing left running."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.node_parser import SentenceSplitter
from scheduler_parts import hook, turn_by_turn

from deepen_core import Ensemble
from deepen_core.errors import ContextWindowError, SamplingError
from deepen_integrations.llama_index import DeepenLLM, HashingEmbedding

pytestmark = pytest.mark.usefixtures("loop_of_llama_index")

TEXT = "Once upon a time"
USER = [ChatMessage(role="user", content="c")]


@pytest.fixture(params=[False, True], ids=["texts", "chats"])
def llm(ensemble, request):
    ensemble.answers = {"c": " three long words", "nothing": ""}
    ensemble.has_chat_template = request.param
    return DeepenLLM.from_ensemble(ensemble)


async def gathered(stream):
    return [response async for response in stream]


def text_of(response):
    return response.message.content if hasattr(response, "message") else response.text


SYNC = {
    "complete": lambda llm, **options: llm.complete("c", **options),
    "chat": lambda llm, **options: llm.chat(USER, **options),
    "stream_complete": lambda llm, **options: list(llm.stream_complete("c", **options)),
    "stream_chat": lambda llm, **options: list(llm.stream_chat(USER, **options)),
}


async def _astream_complete(llm, **options):
    return await gathered(await llm.astream_complete("c", **options))


async def _astream_chat(llm, **options):
    return await gathered(await llm.astream_chat(USER, **options))


ASYNC = {
    "complete": lambda llm, **options: llm.acomplete("c", **options),
    "chat": lambda llm, **options: llm.achat(USER, **options),
    "stream_complete": _astream_complete,
    "stream_chat": _astream_chat,
}


@pytest.mark.parametrize("endpoint", ASYNC)
@pytest.mark.parametrize("options", [{}, {"max_tokens": 2}, {"stop": ["words"], "logprobs": 2}])
def test_the_same_as_from_a_thread(llm, ensemble, endpoint, options):
    if endpoint == "chat" and not ensemble.has_chat_template:
        ensemble.default = ensemble.answers["c"]
    found = asyncio.run(ASYNC[endpoint](llm, **options))
    assert found == SYNC[endpoint](llm, **options)
    last = found[-1] if isinstance(found, list) else found
    assert last.raw["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("endpoint", ASYNC)
def test_an_unknown_option_is_an_error(llm, endpoint):
    with pytest.raises(SamplingError, match="did you mean 'max_new_tokens'"):
        asyncio.run(ASYNC[endpoint](llm, max_new_token=2))


def test_an_empty_answer_is_one_chunk(llm):
    async def ask():
        return await gathered(await llm.astream_complete("nothing"))

    (response,) = asyncio.run(ask())
    assert (response.text, response.delta) == ("", "")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_that_is_left_is_closed(llm, ensemble, debug, chat):
    if debug:
        llm.callback_manager = CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])

    async def leave():
        stream = await (llm.astream_chat(USER) if chat else llm.astream_complete("c"))
        async for _ in stream:
            assert ensemble.open_streams == 1
            break
        await stream.aclose()
        return ensemble.open_streams

    assert asyncio.run(leave()) == 0


@pytest.mark.parametrize("endpoint", ASYNC)
def test_one_pair_of_events_and_one_count_a_call(llm, endpoint):
    counter, debug = TokenCountingHandler(tokenizer=str.split), LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([counter, debug])
    asyncio.run(ASYNC[endpoint](llm))
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    assert len(counter.llm_token_counts) == 1


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_engine_error_reaches_the_query(ensemble, mode, streaming):
    ensemble.context_window = 2000
    ensemble.failure = ContextWindowError("The prompt has 900 tokens")
    llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=16)
    index = VectorStoreIndex.from_documents(
        [Document(text="Mira lives in Lisbon.")],
        embed_model=HashingEmbedding(),
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0)],
    )

    async def ask():
        response = await index.as_query_engine(llm=llm, response_mode=mode, streaming=streaming).aquery(
            "Where does Mira live?"
        )
        if streaming:
            await gathered(response.response_gen)

    with pytest.raises(ContextWindowError, match="900 tokens"):
        asyncio.run(ask())


# The real engine


@pytest.fixture(scope="module")
def demo(needs_demo):
    with Ensemble.demo() as ensemble:
        ensemble.generate(TEXT, max_new_tokens=2)
        yield DeepenLLM.from_ensemble(ensemble, max_new_tokens=40, ignore_eos=True)


def sequences_held(llm):
    scheduler, _ = llm.ensemble._serving()
    return scheduler.call(lambda: scheduler._scheduler.sequences_held).result(timeout=30)


def freed(llm, steps=50):
    """Whether the engine comes to hold nothing; looked at between its steps."""
    return any(sequences_held(llm) == 0 for _ in range(steps))


async def _drain(llm, text):
    *_, last = await gathered(await llm.astream_complete(text))
    return last.text


async def _drain_chat(llm, text):
    *_, last = await gathered(await llm.astream_chat([ChatMessage(role="user", content=text)]))
    return last.message.content


async def _complete(llm, text):
    return (await llm.acomplete(text)).text


async def _chat(llm, text):
    return (await llm.achat([ChatMessage(role="user", content=text)])).message.content


REAL = {"acomplete": _complete, "achat": _chat, "astream_complete": _drain, "astream_chat": _drain_chat}


@pytest.mark.parametrize("endpoint", REAL)
def test_the_loop_goes_on(load, endpoint):
    with load("alpha", "beta") as ensemble:
        asyncio.run(ensemble.agenerate(TEXT, max_new_tokens=2))  # starts the engine's own threads
        member = hook(ensemble)
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=40, ignore_eos=True)

        async def asked():
            together = asyncio.gather(*(REAL[endpoint](llm, f"{TEXT} {n}") for n in range(4)))
            return await turn_by_turn(member, together)

        before = threading.active_count()
        assert all(asyncio.run(asked()))
        assert len(member.forwards) >= 40
        assert threading.active_count() == before  # no executor was needed


@pytest.mark.parametrize("endpoint", REAL)
def test_a_cancelled_task_frees_its_sequence(demo, endpoint):
    llm = demo.with_options(max_new_tokens=400)

    async def cancelled():
        task = asyncio.create_task(REAL[endpoint](llm, TEXT))
        while not sequences_held(llm):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert freed(llm)
    assert llm.complete(TEXT, max_tokens=3).text


def test_many_at_once_answer_as_one_by_one(demo):
    texts = [f"{TEXT}, {name}" for name in ("Mira", "Tomas", "Felix", "Esther", "a dog", "a fox", "a boat", "a king")]
    serial = [demo.complete(text).text for text in texts]

    async def together():
        return await asyncio.gather(*(_chat_or_text(text) for text in texts))

    async def _chat_or_text(text):
        return (await demo.acomplete(text)).text

    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(lambda t=text: demo.complete(t).text) for text in texts]
        assert asyncio.run(together()) == serial
        assert [thread.result() for thread in threads] == serial


def test_one_loop_after_another_and_a_query_within_one(demo):
    first, second = (asyncio.run(_complete(demo, TEXT)) for _ in range(2))
    assert first == second

    async def within():
        return demo.complete(TEXT).text  # as notebooks do it

    assert asyncio.run(within()) == first


def test_raw_is_plain(demo):
    response = asyncio.run(_raw(demo))
    assert json.loads(json.dumps(response)) == response
    assert response["usage"]["completion_tokens"] == 40


async def _raw(llm):
    return (await llm.acomplete(TEXT, logprobs=2)).raw
