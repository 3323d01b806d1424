"""DeepenLLM in LlamaIndex: completions, conversations, streams, events; and a query engine on the real demo."""

import json
import pickle

import pytest
from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import CustomLLM
from llama_index.core.node_parser import SentenceSplitter

from deepen_core import Ensemble
from deepen_core.demo import documents, questions
from deepen_core.errors import ClosedError, ContextWindowError, ModelFilesError, PromptError
from deepen_integrations.llama_index import DeepenLLM, HashingEmbedding

pytestmark = pytest.mark.usefixtures("loop_of_llama_index")

USER = [ChatMessage(role="user", content="c")]


@pytest.fixture
def llm(ensemble):
    ensemble.answers = {"c": " three long words", "nothing": ""}
    return DeepenLLM.from_ensemble(ensemble)


@pytest.fixture
def chat_llm(ensemble):
    ensemble.answers = {"c": " three long words", "nothing": ""}
    ensemble.has_chat_template = True
    return DeepenLLM.from_ensemble(ensemble)


ENDPOINTS = {
    "complete": lambda llm, **options: llm.complete("c", **options),
    "chat": lambda llm, **options: llm.chat(USER, **options),
}
STREAMS = {
    "complete": lambda llm, text="c", **options: llm.stream_complete(text, **options),
    "chat": lambda llm, text="c", **options: llm.stream_chat([ChatMessage(content=text)], **options),
}


def text_of(response):
    return response.message.content if hasattr(response, "message") else response.text


# Completions and streams


def test_the_class_is_what_llama_index_looks_for(llm):
    assert isinstance(llm, CustomLLM)
    assert isinstance(llm, BaseLLM)
    assert llm.class_name() == "DeepenLLM"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_answer_with_usage(chat_llm, endpoint):
    response = ENDPOINTS[endpoint](chat_llm, max_tokens=2)
    assert text_of(response) == " three long"
    assert response.raw.pop("timings").keys() == {"queue_s", "prefill_s", "decode_s", "total_s"}
    assert response.raw == {
        "finish_reason": "length",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "model": "alpha+beta",
    }


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_has_the_text_so_far_and_what_is_new(chat_llm, endpoint):
    responses = list(STREAMS[endpoint](chat_llm))
    assert [response.delta for response in responses] == [" three", " long", " words", ""]
    assert [text_of(r) for r in responses] == [" three", " three long", " three long words", " three long words"]
    assert [response.raw for response in responses[:-1]] == [None] * 3
    assert responses[-1].raw == ENDPOINTS[endpoint](chat_llm).raw


@pytest.mark.parametrize("endpoint", STREAMS)
def test_an_empty_answer_is_one_chunk(chat_llm, endpoint):
    (response,) = STREAMS[endpoint](chat_llm, "nothing")
    assert (text_of(response), response.delta) == ("", "")
    assert response.raw["finish_reason"] == "stop"


@pytest.mark.parametrize("endpoint", STREAMS)
def test_each_chat_chunk_has_a_message_of_its_own(chat_llm, endpoint):
    """Chat engines write into them."""
    responses = list(STREAMS[endpoint](chat_llm))
    messages = {id(getattr(response, "message", response)) for response in responses}
    assert len(messages) == len(responses)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_logprobs_put_the_chosen_token_first(chat_llm, endpoint):
    whole = ENDPOINTS[endpoint](chat_llm, logprobs=2).logprobs
    assert [[choice.token for choice in position] for position in whole] == [
        [" three", " Oslo"],
        [" long", " Oslo"],
        [" words", " Oslo"],
    ]
    assert ENDPOINTS[endpoint](chat_llm).logprobs is None


# Prompts


def test_without_templates_a_text_stays_as_it_is(llm, ensemble):
    llm.complete("c")
    list(llm.stream_complete("c", formatted=True))
    assert [prompt for prompt, _ in ensemble.requests] == ["c", "c"]


def test_without_templates_a_conversation_becomes_a_text(llm, ensemble):
    llm.chat([ChatMessage(role="system", content="Be brief."), *USER])
    assert ensemble.requests[-1][0] == "system: Be brief.\nuser: c\nassistant: "


def test_with_templates_each_member_gets_the_messages(chat_llm, ensemble):
    messages = [
        ChatMessage(role="developer", content="Be brief."),
        ChatMessage(role="user", blocks=[TextBlock(text="a"), TextBlock(text="b")]),
        ChatMessage(role="chatbot", content="yes"),
        ChatMessage(role="user", content="c"),
    ]
    expected = [
        {"role": "developer", "content": "Be brief."},  # the system's, where a template has none
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "c"},
    ]
    chat_llm.chat(messages)
    list(chat_llm.stream_chat(messages))
    assert [prompt for prompt, _ in ensemble.requests] == [expected, expected]


def test_with_templates_an_unformatted_prompt_is_a_users_message(chat_llm, ensemble):
    chat_llm.complete("c")
    chat_llm.complete("c", formatted=True)
    assert [prompt for prompt, _ in ensemble.requests] == [[{"role": "user", "content": "c"}], "c"]


@pytest.mark.parametrize("templates", [False, True])
def test_the_system_prompt_comes_once(ensemble, templates):
    ensemble.has_chat_template = templates
    llm = DeepenLLM.from_ensemble(ensemble, system_prompt="SYS")
    llm.complete("c")
    llm.predict(PromptTemplate("{x}"), x="c")
    assert [str(prompt).count("SYS") for prompt, _ in ensemble.requests] == [1, 1]
    llm.chat(USER)
    assert "SYS" not in str(ensemble.requests[-1][0])


def test_own_prompt_functions_are_honoured(ensemble):
    ensemble.has_chat_template = True
    llm = DeepenLLM.from_ensemble(
        ensemble,
        messages_to_prompt=lambda messages: f"<{messages[-1].content}>",
        completion_to_prompt=lambda text: f"[{text}]",
    )
    llm.chat(USER)
    llm.complete("c")
    assert [prompt for prompt, _ in ensemble.requests] == ["<c>", "[c]"]


@pytest.mark.parametrize("templates", [False, True])
def test_an_image_is_refused_and_not_dropped(ensemble, templates):
    ensemble.has_chat_template = templates
    llm = DeepenLLM.from_ensemble(ensemble)
    message = ChatMessage(blocks=[TextBlock(text="what?"), ImageBlock(image=b"x")])
    for call in (llm.chat, llm.stream_chat):
        with pytest.raises(PromptError, match="ImageBlock: only text"):
            list(call([message]))


# Streams that are left, and errors


@pytest.mark.parametrize("endpoint", STREAMS)
@pytest.mark.parametrize("debug", [False, True])
def test_an_abandoned_stream_is_closed(chat_llm, ensemble, endpoint, debug):
    if debug:
        chat_llm.callback_manager = CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])
    stream = STREAMS[endpoint](chat_llm)
    next(stream)
    assert ensemble.open_streams == 1
    del stream
    assert ensemble.open_streams == 0


def test_a_call_within_a_stream_works(llm, ensemble):
    for response in llm.stream_complete("c"):
        assert llm.complete("c").text.startswith(response.text)
    assert ensemble.open_streams == 0


def rag(llm, **options):
    texts = [Document(text="Mira lives in Lisbon."), Document(text="Tomas lives in Oslo.")]
    index = VectorStoreIndex.from_documents(
        texts,
        embed_model=HashingEmbedding(),
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0)],
    )
    return index.as_query_engine(llm=llm, **options)


@pytest.fixture
def reader(ensemble):
    ensemble.context_window = 2000
    return DeepenLLM.from_ensemble(ensemble, max_new_tokens=16)


def test_query_engine(ensemble, reader):
    response = rag(reader, similarity_top_k=1).query("Where does Mira live?")
    assert str(response) == " The answer is Lisbon."
    prompt, params = ensemble.requests[-1]
    assert "Mira lives in Lisbon." in prompt
    assert "Tomas" not in prompt
    assert params.max_new_tokens == 16


def test_streaming_query_engine(reader):
    response = rag(reader, streaming=True).query("Where does Mira live?")
    assert list(response.response_gen) == [" The", " answer", " is", " Lisbon.", ""]


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
def test_an_engine_error_is_never_an_empty_response(ensemble, reader, mode):
    ensemble.failure = ContextWindowError("The prompt has 900 tokens")
    with pytest.raises(ContextWindowError, match="900 tokens"):
        rag(reader, response_mode=mode).query("Where does Mira live?")
    with pytest.raises(ContextWindowError, match="900 tokens"):
        list(rag(reader, response_mode=mode, streaming=True).query("Where does Mira live?").response_gen)


# Events and counts


class Events(BaseEventHandler):
    seen: list

    @classmethod
    def class_name(cls):
        return "Events"

    def handle(self, event, **kwargs):
        self.seen.append(event)


@pytest.fixture
def events():
    handler, dispatcher = Events(seen=[]), get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler.seen
    dispatcher.event_handlers.remove(handler)


CALLS = {
    "complete": (lambda llm: llm.complete("c"), "LLMCompletion"),
    "stream_complete": (lambda llm: list(llm.stream_complete("c")), "LLMCompletion"),
    "chat": (lambda llm: llm.chat(USER), "LLMChat"),
    "stream_chat": (lambda llm: list(llm.stream_chat(USER)), "LLMChat"),
}


@pytest.mark.parametrize("call", CALLS)
def test_one_pair_of_events_and_one_count_a_call(chat_llm, events, call):
    counter = TokenCountingHandler(tokenizer=str.split)
    debug = LlamaDebugHandler(print_trace_on_end=False)
    chat_llm.callback_manager = CallbackManager([counter, debug])
    run, kind = CALLS[call]
    run(chat_llm)
    names = [event.class_name() for event in events if "InProgress" not in event.class_name()]
    assert [name for name in names if name.startswith("LLM")] == [f"{kind}StartEvent", f"{kind}EndEvent"]
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    (count,) = counter.llm_token_counts
    assert (count.prompt_token_count, count.completion_token_count) == (1, 3)
    for event in events:
        assert json.loads(event.model_dump_json())


def test_events_of_a_stream_tell_the_options_of_the_call(llm, events):
    list(llm.stream_complete("c", max_tokens=2))
    start = next(event for event in events if event.class_name() == "LLMCompletionStartEvent")
    assert start.prompt == "c"
    assert start.additional_kwargs == {"max_tokens": 2}


# Metadata and storing


def test_metadata_is_the_ensembles(ensemble):
    ensemble.context_window, ensemble.has_chat_template = 777, True
    metadata = DeepenLLM.from_ensemble(ensemble).metadata
    assert (metadata.context_window, metadata.num_output, metadata.model_name) == (777, 256, "alpha+beta")
    assert metadata.is_chat_model
    assert not metadata.is_function_calling_model
    assert DeepenLLM.from_ensemble(ensemble, context_window=99, max_tokens=5).metadata.context_window == 99


@pytest.mark.usefixtures("needs_demo")
def test_metadata_loads_nothing(loads):
    metadata = DeepenLLM.demo(max_new_tokens=9).metadata
    assert (metadata.num_output, metadata.is_chat_model) == (9, True)
    assert metadata.context_window > 1000
    assert not loads


def test_metadata_of_models_that_are_not_there(loads):
    with pytest.raises(ModelFilesError, match="There is no folder"):
        _ = DeepenLLM(models=["./a", "./b"]).metadata
    assert not loads


def test_dict_json_and_pickle_rebuild_it(loads):
    llm = DeepenLLM(models=["a", {"model": "b", "weight": 2}], stop=["x"], context_window=99, system_prompt="S")
    copies = [
        DeepenLLM.from_dict(llm.to_dict()),
        DeepenLLM.from_json(llm.to_json()),
        pickle.loads(pickle.dumps(llm)),
    ]
    for copied in copies:
        assert copied.to_dict() == llm.to_dict()
        assert copied.ensemble is llm.ensemble
    assert len(loads) == 1


# The embedding


def test_hashing_embedding_finds_texts_by_their_words():
    embedding = HashingEmbedding()
    mira, tomas, query = embedding.get_text_embedding_batch(
        ["Mira lives in Lisbon.", "Tomas lives in Oslo.", "where does MIRA live?"]
    )
    assert embedding.similarity(query, mira) > embedding.similarity(query, tomas)
    assert sum(x * x for x in mira) == pytest.approx(1)
    for text in ("...", "", "where is it?"):  # no vector is zero: LlamaIndex divides by its length
        assert embedding.similarity(embedding.get_text_embedding(text), mira) < 0.5


def test_hashing_embedding_finds_the_right_document_of_the_demo():
    nodes = VectorStoreIndex.from_documents(
        [Document(text=d.text, metadata={"title": d.title}) for d in documents()], embed_model=HashingEmbedding()
    ).as_retriever(similarity_top_k=1)
    for question in questions()[:100]:
        (found,) = nodes.retrieve(question.text)
        assert found.metadata["title"] in question.text


# The real engine


@pytest.fixture(scope="module")
def demo(needs_demo):
    with DeepenLLM.demo(max_new_tokens=16) as llm:
        yield llm


def test_demo_streams_what_it_completes(demo):
    prompt = questions()[0].prompt
    *_, last = demo.stream_complete(prompt)
    assert last.text == demo.complete(prompt).text
    assert last.raw["usage"] == demo.complete(prompt).raw["usage"]


def test_demo_facts_from_files_are_the_loaded_ones(demo):
    before = DeepenLLM.demo(device="cpu", max_new_tokens=demo.max_new_tokens).metadata
    assert demo.complete("Mira lives in").text
    assert before == demo.metadata
    assert 1000 < before.context_window < demo.ensemble.context_window


@pytest.mark.usefixtures("needs_demo")
def test_a_closed_demo_is_told_and_not_an_empty_response():
    ensemble = Ensemble.demo()
    engine = rag(DeepenLLM.from_ensemble(ensemble))
    ensemble.close()
    with pytest.raises(ClosedError):
        engine.query("Where does Mira live?")


@pytest.mark.parametrize("streaming", [False, True])
def test_demo_query_engine(demo, streaming):
    texts = [Document(text=document.text) for document in documents()]
    index = VectorStoreIndex.from_documents(texts, embed_model=HashingEmbedding())
    engine = index.as_query_engine(llm=demo, similarity_top_k=1, streaming=streaming)
    asked = [question for question in questions() if question.known_to == "both"][:5]
    answers = [str(engine.query(question.text)).strip() for question in asked]
    right = sum(answer == question.answer for answer, question in zip(answers, asked, strict=True))
    assert right >= 3, list(zip(answers, asked, strict=True))
