"""What LlamaIndex's handlers are told of a call, on real members: once, exactly, and in plain data."""

import asyncio
import json

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index_parts import EIGHT, ENDPOINTS, QUESTION, USER, Counting, called, index_of, text_of
from scheduler_parts import hook

from deepen_core import Ensemble
from deepen_core.demo import member_paths, questions
from deepen_core.errors import MemberError
from deepen_integrations.llama_index import DeepenLLM, configure_settings

pytestmark = pytest.mark.usefixtures("loop_of_llama_index", "fresh_settings")


@pytest.fixture(params=["texts", "chats"])
def kind(request):
    return request.param


@pytest.fixture
def llm(kind, reading_ensembles):
    """With handlers of both kinds of its own."""
    llm = DeepenLLM.from_ensemble(reading_ensembles[kind], max_new_tokens=6, ignore_eos=True)
    handlers = [TokenCountingHandler(tokenizer=llm.ensemble.tokenize), LlamaDebugHandler(print_trace_on_end=False)]
    llm.callback_manager = CallbackManager(handlers)
    return llm


@pytest.fixture
def count(kind, reading_folders):
    return Counting(reading_folders[kind][0])


def asked(llm, endpoint):
    """What a call comes to for the models: a text, or messages."""
    if llm.metadata.is_chat_model:
        return USER
    return QUESTION if "complete" in endpoint else f"user: {QUESTION}\nassistant: "


@pytest.mark.parametrize("endpoint", EIGHT)
def test_one_start_one_end_one_exact_count(llm, events, count, endpoint):
    called(llm, endpoint)
    kind = "LLMChat" if "chat" in endpoint else "LLMCompletion"
    names = [e.class_name() for e in events.seen if "InProgress" not in e.class_name()]
    assert names == [f"{kind}StartEvent", f"{kind}EndEvent"]
    counter, debug = llm.callback_manager.handlers
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    (counted,) = counter.llm_token_counts
    assert counted.prompt_token_count == count.prompt(asked(llm, endpoint))
    assert counted.completion_token_count == 6
    assert counter.total_llm_token_count == counted.prompt_token_count + 6


@pytest.mark.parametrize("endpoint", EIGHT)
def test_a_stream_tells_each_piece_once(llm, events, endpoint):
    responses = called(llm, endpoint)
    told = [event.response for event in events.seen if "InProgress" in event.class_name()]
    assert told == (responses if "stream" in endpoint else [])


def test_counts_of_a_query_are_those_of_its_prompts(llm, events, count, fresh_settings):
    configure_settings(llm)
    counter = TokenCountingHandler()
    fresh_settings.callback_manager = CallbackManager([counter])  # an index gives it to the models it asks
    index_of(12).as_query_engine(llm=llm, response_mode="refine", similarity_top_k=4).query(QUESTION)
    prompts = [event.messages for event in events.named("LLMChatStartEvent")]
    prompts += [event.prompt for event in events.named("LLMCompletionStartEvent")]
    assert len(prompts) > 3
    assert counter.prompt_llm_token_count == sum(map(count.prompt, prompts))
    assert counter.completion_llm_token_count == 6 * len(prompts)
    assert counter.total_embedding_token_count > 0


@pytest.mark.usefixtures("needs_demo")
def test_on_the_demo_answers_have_as_many_tokens_as_their_texts():
    """Models that were trained write words in the tokens that their tokenizer would take."""
    with DeepenLLM.demo(max_new_tokens=16, progress=False) as llm:
        counter = TokenCountingHandler(tokenizer=llm.ensemble.tokenize)
        llm.callback_manager = CallbackManager([counter])
        texts = [llm.complete(question.text).text for question in questions()[:20]]
    count = Counting(member_paths()[0])
    assert [c.completion_token_count for c in counter.llm_token_counts] == [count.answer(text) for text in texts]


@pytest.mark.parametrize("endpoint", EIGHT)
def test_all_that_is_told_is_plain(llm, events, endpoint):
    responses = called(llm, endpoint, logprobs=2)
    assert json.loads(json.dumps(responses[-1].raw)) == responses[-1].raw
    assert len(events.seen) >= 2
    for event in events.seen:
        assert json.loads(event.model_dump_json())["id_"] == event.id_


@pytest.fixture
def spans():
    handler, dispatcher = SimpleSpanHandler(), get_dispatcher()
    dispatcher.add_span_handler(handler)
    yield handler
    dispatcher.span_handlers.remove(handler)


@pytest.mark.parametrize("endpoint", EIGHT)
def test_every_call_is_a_span_that_ends(llm, spans, endpoint):
    called(llm, endpoint)
    names = [span.id_.partition("-")[0] for span in spans.completed_spans]
    assert f"DeepenLLM.{endpoint}" in names
    assert not spans.open_spans
    assert not spans.dropped_spans


@pytest.mark.parametrize("endpoint", EIGHT)
def test_an_engine_error_is_told_to_handlers_and_raised(reading_folders, events, spans, kind, endpoint):
    with Ensemble.load(reading_folders[kind], progress=False) as ensemble:
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=6, ignore_eos=True)
        debug = LlamaDebugHandler(print_trace_on_end=False)
        counter = TokenCountingHandler(tokenizer=ensemble.tokenize)
        llm.callback_manager = CallbackManager([debug, counter])

        def fail(rows):
            raise RuntimeError("the fan has stopped")

        hook(ensemble, 1).fail = fail
        with pytest.raises(MemberError, match="the fan has stopped"):
            called(llm, endpoint)
    ((_, end),) = debug.get_event_pairs(CBEventType.LLM)
    assert isinstance(end.payload["exception"], MemberError)
    assert not [event for event in events.seen if event.class_name().endswith("EndEvent")]
    assert not spans.open_spans


@pytest.mark.parametrize("endpoint", [name for name in EIGHT if "stream" in name])
def test_a_stream_that_is_left_ends_its_event(llm, endpoint):
    """LlamaDebugHandler keeps the exception, and with it all that its frames hold."""
    llm = llm.with_options(max_new_tokens=1500)
    if endpoint in ENDPOINTS:
        stream = llm.stream_chat(USER) if "chat" in endpoint else llm.stream_complete(QUESTION)
        next(stream)
        stream.close()
    else:

        async def leave():
            ask = llm.astream_chat(USER) if "chat" in endpoint else llm.astream_complete(QUESTION)
            stream = await ask
            await anext(stream)
            await stream.aclose()

        asyncio.run(leave())
    _, debug = llm.callback_manager.handlers
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    scheduler, _ = llm.ensemble._serving()
    held = [scheduler.call(lambda: scheduler._scheduler.sequences_held).result(timeout=30) for _ in range(20)]
    assert held[-1] == 0


class Limiter(BaseRateLimiter):
    """Counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def acquire(self, num_tokens=0):
        self.asked.append("sync")

    async def async_acquire(self, num_tokens=0):
        self.asked.append("async")


@pytest.mark.parametrize("endpoint", EIGHT)
def test_the_rate_limiter_is_asked_once(llm, endpoint):
    llm.rate_limiter = limiter = Limiter()
    called(llm, endpoint)
    assert len(limiter.asked) == 1
    if endpoint in ("acomplete", "achat"):
        assert limiter.asked == ["async"]


def test_text_of_all_eight_is_the_same(llm):
    """So that the counts above are of one and the same answer."""
    chats = {text_of(called(llm, name)[-1]) for name in EIGHT if "chat" in name}
    completions = {text_of(called(llm, name)[-1]) for name in EIGHT if "complete" in name}
    assert len(chats) == len(completions) == 1
