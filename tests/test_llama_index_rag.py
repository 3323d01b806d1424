"""Query engines of LlamaIndex on real members: all response modes, from threads and loops, whole and streaming."""

import asyncio
import threading

import pytest
from llama_index.core import PromptTemplate, get_response_synthesizer
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index_parts import QUESTION, Counting, gathered, index_of
from scheduler_parts import hook

from deepen_core import Ensemble
from deepen_core.demo import documents
from deepen_core.errors import ContextWindowError, MemberError, ModelFilesError
from deepen_core.members import loading
from deepen_integrations.llama_index import DeepenLLM, configure_settings

pytestmark = pytest.mark.usefixtures("loop_of_llama_index", "fresh_settings")

STREAMING = [mode for mode in ResponseMode if "accumulate" not in mode.value]
WITHOUT_A_MODEL = (ResponseMode.NO_TEXT, ResponseMode.CONTEXT_ONLY)


@pytest.fixture(params=["texts", "chats"])
def llm(request, reading_ensembles):
    """Set as LlamaIndex's default. Answers never end early: an empty one says nothing."""
    llm = DeepenLLM.from_ensemble(reading_ensembles[request.param], max_new_tokens=6, ignore_eos=True)
    assert llm.metadata.is_chat_model is (request.param == "chats")
    configure_settings(llm)
    return llm


@pytest.mark.parametrize("mode", ResponseMode)
def test_every_mode_answers_alike_in_all_four_ways(llm, events, mode):
    index = index_of()
    options = {"llm": llm, "response_mode": mode, "similarity_top_k": 3}
    whole = index.as_query_engine(**options)

    async def ask():
        return str(await whole.aquery(QUESTION))

    async def stream():
        response = await index.as_query_engine(**options, streaming=True).aquery(QUESTION)
        return "".join(await gathered(response.async_response_gen()))

    answer = str(whole.query(QUESTION))
    calls = len(events.named("LLMChatEndEvent", "LLMCompletionEndEvent"))
    assert (calls == 0) is (mode in WITHOUT_A_MODEL)
    assert (answer == "None") is (mode == ResponseMode.NO_TEXT)  # as LlamaIndex writes no answer
    assert asyncio.run(ask()) == answer
    if mode in STREAMING and mode not in WITHOUT_A_MODEL:
        streamed = index.as_query_engine(**options, streaming=True).query(QUESTION)
        assert "".join(streamed.response_gen) == answer
        assert asyncio.run(stream()) == answer


def synthesizer(llm, mode, **options):
    return get_response_synthesizer(llm=llm, response_mode=mode, **options)


def nodes(texts):
    return [NodeWithScore(node=TextNode(text=text), score=1.0) for text in texts]


def test_a_tree_is_summarized_at_once_and_in_a_running_loop(llm, events):
    """`use_async` starts a loop of its own beside the one that runs; each branch is a request of its own."""
    llm = llm.with_options(max_new_tokens=40)
    # Several prompts full of text, and one more for their summaries.
    texts = [" ".join(document.text for document in documents()[:30])]
    one_by_one = str(synthesizer(llm, "tree_summarize").synthesize(QUESTION, nodes(texts)))
    calls = len(events.named("LLMChatEndEvent", "LLMCompletionEndEvent"))
    assert calls > 2

    async def within_a_loop():
        return str(synthesizer(llm, "tree_summarize", use_async=True).synthesize(QUESTION, nodes(texts)))

    assert str(synthesizer(llm, "tree_summarize", use_async=True).synthesize(QUESTION, nodes(texts))) == one_by_one
    assert asyncio.run(within_a_loop()) == one_by_one
    assert len(events.named("LLMChatEndEvent", "LLMCompletionEndEvent")) == 3 * calls


@pytest.mark.parametrize(
    ("mode", "streaming"),
    [
        (mode, streaming)
        for mode in ResponseMode
        for streaming in (False, True)
        if mode not in WITHOUT_A_MODEL and (mode in STREAMING or not streaming)
    ],
)
def test_an_engine_error_is_raised_and_never_an_empty_response(reading_folders, mode, streaming):
    """LlamaIndex takes a ValueError of a model for an empty answer."""
    with Ensemble.load(reading_folders["chats"], progress=False) as ensemble:
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=6)
        configure_settings(llm)
        engine = index_of().as_query_engine(llm=llm, response_mode=mode, streaming=streaming)
        hook(ensemble, 1).spoil = lambda rows, logits: logits * float("nan")

        def ask_here():
            response = engine.query(QUESTION)
            return list(response.response_gen) if streaming else str(response)

        async def ask():
            response = await engine.aquery(QUESTION)
            return await gathered(response.async_response_gen()) if streaming else str(response)

        with pytest.raises(MemberError, match="Member 'two'"):
            ask_here()
        with pytest.raises(MemberError, match="Member 'two'"):
            asyncio.run(ask())


def test_metadata_is_of_the_ensemble(llm):
    ensemble, metadata = llm.ensemble, llm.metadata
    assert metadata.model_name == "one+two"
    assert metadata.context_window == ensemble.planning_window < ensemble.context_window == 2200
    assert metadata.num_output == 6
    assert not metadata.is_function_calling_model
    assert llm.with_options(max_new_tokens=100_000).metadata.num_output < metadata.context_window
    assert DeepenLLM.from_ensemble(ensemble, context_window=1234).metadata.context_window == 1234


@pytest.mark.parametrize("kind", ["texts", "chats"])
def test_metadata_is_the_same_before_loading(reading_folders, reading_ensembles, kind):
    for options in ({}, {"main": 1}, {"weights": [1, 0]}, {"context_window": 999}):
        llm = DeepenLLM(models=reading_folders[kind], **options)
        before = llm.metadata
        assert not llm._held()._loaded
        assert llm.ensemble
        assert llm.metadata == before
        llm.close()
    assert DeepenLLM.from_ensemble(reading_ensembles[kind]).metadata == DeepenLLM(models=reading_folders[kind]).metadata


def test_metadata_of_a_missing_folder_is_its_error():
    with pytest.raises(ModelFilesError, match="There is no folder /no/such/model"):
        _ = DeepenLLM(models=["/no/such/model"]).metadata


async def test_a_first_call_reads_tokenizers_once_and_not_on_the_loop(reading_folders, monkeypatch):
    """LlamaIndex asks for a payload before every call."""
    threads, read = [], loading.describe_member

    def spy(*arguments, **options):
        threads.append(threading.current_thread())
        return read(*arguments, **options)

    monkeypatch.setattr("deepen_core.ensemble.describe_member", spy)
    with DeepenLLM(models=reading_folders["texts"], max_new_tokens=1, weights=[0.4, 0.6]) as llm:
        await llm.acomplete("Hi")
    assert len(threads) == 2
    assert threading.main_thread() not in threads


class Filled:
    """Compares every prompt with every member's window, by transformers' own tokenizers."""

    def __init__(self, llm, folders, events):
        self.windows = [member.context_window for member in llm.ensemble.info.members]
        self.counting = [Counting(folder) for folder in folders]
        self.events = events

    def room(self):
        """The least room that any prompt left in a member."""
        prompts = [event.messages for event in self.events.named("LLMChatStartEvent")]
        prompts += [event.prompt for event in self.events.named("LLMCompletionStartEvent")]
        found = []
        for prompt in prompts:
            counts = [counting.prompt(prompt) for counting in self.counting]
            found += [window - count for window, count in zip(self.windows, counts, strict=True)]
        return min(found)


@pytest.mark.parametrize("mode", ["compact", "tree_summarize", "simple_summarize", "compact_accumulate"])
def test_prompts_that_llama_index_fills_fit_every_member(llm, reading_folders, events, mode):
    """Far more text than fits, cut and packed by LlamaIndex."""
    filled = Filled(llm, reading_folders["chats" if llm.metadata.is_chat_model else "texts"], events)
    texts = [" ".join(document.text for document in documents()[:30])]
    answer = synthesizer(llm, mode).synthesize(QUESTION, nodes(texts))
    assert str(answer) != "Empty Response"
    assert 6 <= filled.room() < 1100  # of 2200: compact keeps 500 of main's tokens free


def test_an_over_long_prompt_is_told_with_its_numbers(llm):
    prompt = PromptTemplate("{text}")
    with pytest.raises(ContextWindowError, match=r"has \d+ tokens for member 'one', whose context window is 2400"):
        llm.predict(prompt, text="word " * 2400)
    with pytest.raises(ContextWindowError, match="shorten it by at least"):
        list(llm.stream(prompt, text="word " * 2400))


def test_a_prompt_helper_plans_with_what_is_measured(llm, fresh_settings):
    helper = fresh_settings.prompt_helper
    assert (helper.context_window, helper.num_output) == (llm.metadata.context_window, 6)
    assert helper._token_counter.get_string_tokens(QUESTION) == llm.ensemble.count_tokens(QUESTION)
