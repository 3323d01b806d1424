"""Answers of ChatDeepen, whole and in pieces."""

import codecs
from concurrent.futures import ThreadPoolExecutor

import pytest
from amounts import seeds
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_parts import WAYS, Recorder, asked, check_the_first_piece, summed
from langchain_tests.utils.stream_lifecycle import assert_valid_event_stream
from langgraph.graph import START, MessagesState, StateGraph
from scheduler_parts import PROMPTS, hook

from deepen_core.errors import ContextWindowError, PromptError
from deepen_integrations.langchain import ChatDeepen

PROMPT = "The quick brown fox"
TOO_LONG = "word " * 500


@pytest.fixture
def chat(pair):
    return ChatDeepen.from_ensemble(pair, max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def whole(pair):
    """The text that the fixture `chat` answers."""
    return ChatDeepen.from_ensemble(pair, max_new_tokens=12, ignore_eos=True).invoke(PROMPT).text


# Many at once


class TestBatches:
    """Conversations that come together are decoded together."""

    @pytest.fixture
    def watched(self, load):
        with load("alpha", "beta") as ensemble:
            member = hook(ensemble)
            yield ChatDeepen.from_ensemble(ensemble, max_new_tokens=12, ignore_eos=True), member

    @pytest.mark.parametrize(
        "way", ["batch", "achain", *(pytest.param(way, marks=pytest.mark.slow) for way in ("abatch", "chain"))]
    )
    async def test_twenty_conversations_are_one_decode_batch(self, watched, way):
        chat, member = watched
        texts = [f"{PROMPT} {n}" for n in range(20)]
        alone = [chat.invoke(text).text for text in texts]
        chain, inputs = ChatPromptTemplate.from_messages([("human", "{q}")]) | chat, [{"q": text} for text in texts]
        member.forwards.clear()
        if way == "batch":
            answers = chat.batch(texts)
        elif way == "abatch":
            answers = await chat.abatch(texts)
        else:
            answers = chain.batch(inputs) if way == "chain" else await chain.abatch(inputs)
        assert [answer.text for answer in answers] == alone
        assert max(member.forwards) >= 16

    @pytest.mark.parametrize("way", ["batch", "abatch"])
    async def test_each_input_keeps_its_callbacks_tags_and_name(self, chat, way):
        recorders = [Recorder() for _ in range(20)]
        configs = [{"callbacks": [r], "tags": [f"t{n}"], "run_name": f"r{n}"} for n, r in enumerate(recorders)]
        texts = [f"{PROMPT} {n}" for n in range(20)]
        answers = chat.batch(texts, configs) if way == "batch" else await chat.abatch(texts, configs)
        for n, (recorder, answer) in enumerate(zip(recorders, answers, strict=True)):
            (start,) = recorder.starts
            assert (start["tags"], start["name"]) == ([f"t{n}"], f"r{n}")
            assert recorder.prompts == [f"Human: {PROMPT} {n}"]
            assert recorder.ends[0].generations[0][0].text == answer.text

    def test_max_concurrency_holds(self, watched):
        chat, member = watched
        config = {"max_concurrency": 3}
        chat.batch([PROMPT] * 8, config)
        assert max(member.forwards) <= 3
        assert config == {"max_concurrency": 3}
        assert chat.batch([]) == []

    def test_threads_and_parallel_branches_are_decoded_together(self, watched):
        chat, member = watched
        alone = {text: chat.invoke(text).text for text in PROMPTS}
        ways = {
            "as completed": lambda: {PROMPTS[n]: m.text for n, m in chat.batch_as_completed(list(PROMPTS))},
            "parallel": lambda: {
                text: m.text
                for text, m in RunnableParallel(
                    {text: RunnableLambda(lambda _, text=text: text) | chat for text in PROMPTS}
                )
                .invoke("")
                .items()
            },
            "threads": lambda: self._threads(chat),
        }
        for way, ask in ways.items():
            member.forwards.clear()
            assert ask() == alone, way
            assert max(member.forwards) > 1, way

    def _threads(self, chat):
        texts = list(PROMPTS) * 3
        with ThreadPoolExecutor(len(texts)) as pool:
            return dict(zip(texts, (m.text for m in pool.map(chat.invoke, texts)), strict=True))


@pytest.mark.parametrize("way", ["batch", "abatch"])
async def test_only_what_fails_is_an_exception(chat, whole, way):
    image = [HumanMessage([{"type": "image_url", "image_url": {"url": "data:"}}])]
    inputs = [PROMPT, TOO_LONG, image, PROMPT]
    ask = chat.batch(inputs, return_exceptions=True)
    first, long, seen, last = ask if way == "batch" else await chat.abatch(inputs, return_exceptions=True)
    assert first.text == last.text == whole
    assert isinstance(long, ContextWindowError)
    assert isinstance(seen, PromptError)


# Endings


@pytest.mark.parametrize("way", WAYS)
async def test_finish_reasons(chat, way):
    async def reason(**options):
        return (await asked(chat, way, PROMPT, **options)).response_metadata["finish_reason"]

    assert await reason() == "length"
    assert await reason(max_tokens=3) == "length"
    assert await reason(choices=["yes"], ignore_eos=False) == "stop"
    assert await reason(stop=[(await asked(chat, way, PROMPT)).text[4]]) == "stop"


class TestStopStrings:
    """A stop string is cut exactly, wherever it was given and however its tokens fall."""

    @pytest.fixture
    def chat(self, pair):
        return ChatDeepen.from_ensemble(pair, max_new_tokens=40, ignore_eos=True)

    @pytest.fixture
    def whole(self, chat):
        return chat.invoke(PROMPT).text

    @pytest.fixture
    def stop(self, whole):
        middle = len(whole) // 2
        return whole[middle - 4 : middle + 4]  # longer than a token

    @pytest.mark.parametrize("way", [*WAYS, "batch", "abatch", "bind", "init"])
    async def test_every_way(self, chat, whole, stop, way):
        if way == "batch":
            (answer, _) = chat.batch([PROMPT, PROMPT], stop=[stop])
        elif way == "abatch":
            (answer, _) = await chat.abatch([PROMPT, PROMPT], stop=[stop])
        elif way == "bind":
            answer = chat.bind(stop=[stop]).invoke(PROMPT)
        elif way == "init":
            answer = chat.with_options(stop=[stop]).invoke(PROMPT)
        else:
            answer = await asked(chat, way, PROMPT, stop=[stop])
        assert answer.text == whole.partition(stop)[0]

    def test_no_part_of_it_is_ever_shown(self, chat, whole, stop):
        before, shown = whole.partition(stop)[0], ""
        for piece in chat.stream(PROMPT, stop=[stop]):
            shown += piece.text
            assert before.startswith(shown)

    def test_the_earliest_wins_a_call_overrides_and_an_empty_list_disables(self, chat, whole):
        early, late = whole[5:8], whole[12:16]
        cut = whole[: min(whole.index(early), whole.index(late))]
        assert chat.invoke(PROMPT, stop=[late, early]).text == chat.invoke(PROMPT, stop=[early, late]).text == cut
        own = chat.with_options(stop=[early])
        assert own.invoke(PROMPT).text == whole.partition(early)[0]
        assert own.invoke(PROMPT, stop=[late]).text == whole.partition(late)[0]
        assert own.invoke(PROMPT, stop=[]).text == whole


@pytest.mark.parametrize("tools", [[], [{"title": "add", "type": "object", "properties": {}}]], ids=["text", "tools"])
def test_characters_of_several_tokens_come_whole(terse, tools):
    """Random members speak single bytes; what becomes a character is shown once it is one."""
    hot = ChatDeepen.from_ensemble(terse, temperature=1.5, max_tokens=40).bind_tools(tools)
    broken = 0
    for seed in seeds(10):
        pieces = [chunk.text for chunk in hot.stream("你好，世界。", seed=seed, logprobs=0)]
        answer = hot.invoke("你好，世界。", seed=seed, logprobs=0)
        assert "".join(pieces) == answer.text
        assert all(piece.encode().decode() == piece for piece in pieces)
        spoken = [bytes(entry["bytes"]) for entry in answer.response_metadata["logprobs"]["content"]]
        assert answer.text.rstrip() == decoded(spoken).rstrip()
        broken += any(b.decode("utf-8", "ignore").encode() != b for b in spoken)
    assert broken


def decoded(spoken):
    """What bytes say; a character that they only begin at the end is left out."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(spoken))


def test_the_first_piece_comes_early(load):
    with load("alpha", "beta") as ensemble:
        check_the_first_piece(ensemble, ChatDeepen.from_ensemble(ensemble, max_new_tokens=200, ignore_eos=True))


# Streams


@pytest.mark.parametrize("way", ["stream", "astream"])
@pytest.mark.parametrize("logprobs", [None, 2])
async def test_one_chunk_tells_and_the_last_is_marked(chat, whole, way, logprobs):
    recorder, config = Recorder(), {}
    config["callbacks"] = [recorder]
    if way == "stream":
        chunks = list(chat.stream(PROMPT, config, logprobs=logprobs))
    else:
        chunks = [chunk async for chunk in chat.astream(PROMPT, config, logprobs=logprobs)]
    assert [chunk.message for _, chunk in recorder.tokens] == chunks
    assert len(chunks) > 4
    assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]
    *others, last = chunks
    assert not any(chunk.usage_metadata or set(chunk.response_metadata) - {"logprobs"} for chunk in others)
    assert last.usage_metadata["input_tokens"] > 0
    told = {"model_name", "model_provider", "finish_reason", "timings"}
    assert set(last.response_metadata) == told | ({"logprobs"} if logprobs else set())
    message = summed(chunks)
    assert message.text == whole
    assert message.content_blocks == [{"type": "text", "text": whole}]
    assert message.usage_metadata == last.usage_metadata == chat.invoke(PROMPT).usage_metadata
    assert {**message.response_metadata, "logprobs": 0} == {**last.response_metadata, "logprobs": 0}
    assert recorder.ends[0].generations[0][0].text == whole


@pytest.mark.parametrize("version", [None, "v0", "v1"])
async def test_every_way_says_the_same(pair, version):
    options = {} if version is None else {"output_version": version}
    chat = ChatDeepen.from_ensemble(pair, max_new_tokens=12, ignore_eos=True, logprobs=1, **options)
    answers = [await asked(chat, way, PROMPT) for way in WAYS]
    for answer in answers:
        assert type(answer) is AIMessage
        (block,) = answer.content_blocks
        assert (block["type"], block["text"]) == ("text", answers[0].text)
        assert answer.usage_metadata == answers[0].usage_metadata
        for name in ("finish_reason", "model_name", "model_provider", "logprobs"):
            assert answer.response_metadata[name] == answers[0].response_metadata[name]


@pytest.mark.filterwarnings("ignore:The method:langchain_core._api.LangChainBetaWarning")
async def test_events_of_version_3_are_valid_and_come_to_what_invoke_says(chat):
    expected = chat.invoke(PROMPT)
    stream = chat.stream_events(PROMPT, version="v3")
    events = list(stream)
    later = await chat.astream_events(PROMPT, version="v3")
    for told, output in ((events, stream.output), ([event async for event in later], await later.output)):
        assert_valid_event_stream(told)
        assert len(told) > 8
        assert output.text == expected.text
        assert output.usage_metadata == expected.usage_metadata
        assert output.usage_metadata["output_tokens"] == 12


class TestGraphListeners:
    """What listens to a graph hears each piece of a model that is only invoked in it."""

    @pytest.fixture
    def graph(self, chat):
        async def answer(state):
            return {"messages": [await chat.ainvoke(state["messages"])]}

        def answer_now(state):
            return {"messages": [chat.invoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("answer", RunnableLambda(answer_now, answer))
        graph.add_edge(START, "answer")
        return graph.compile()

    @pytest.mark.parametrize("way", ["stream", "astream"])
    async def test_langgraph_streams_messages(self, graph, whole, way):
        asking = {"messages": [("user", PROMPT)]}
        if way == "stream":
            told = list(graph.stream(asking, stream_mode="messages"))
        else:
            told = [pair async for pair in graph.astream(asking, stream_mode="messages")]
        chunks = [message for message, _ in told]
        assert len(chunks) > 4
        assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
        assert len({chunk.id for chunk in chunks}) == 1
        assert summed(chunks).text == whole

    @pytest.mark.parametrize("way", WAYS)
    async def test_usage_adds_up(self, chat, way):
        handler = UsageMetadataCallbackHandler()
        total = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 0)
        for prompt in PROMPTS[:3]:
            usage = (await asked(chat, way, prompt, {"callbacks": [handler]})).usage_metadata
            total = {name: count + usage[name] for name, count in total.items()}
        assert handler.usage_metadata == {"alpha+beta": total}
        assert total["output_tokens"] == 36


class TestStreamingSwitches:
    """LangChain's switches for streaming."""

    def pieces(self, chat, **options):
        return len(list(chat.stream(PROMPT, **options)))

    def tokens(self, chat, **options):
        recorder = Recorder()
        chat.invoke(PROMPT, {"callbacks": [recorder]}, **options)
        return len(recorder.tokens)

    def test_disabled_for_good_or_where_tools_are(self, terse, pair, chat):
        tool = {"title": "add", "type": "object", "properties": {}}
        held = ChatDeepen.from_ensemble(pair, max_new_tokens=12, ignore_eos=True, disable_streaming=True)
        some = ChatDeepen.from_ensemble(terse, max_new_tokens=12, ignore_eos=True, disable_streaming="tool_calling")
        assert self.pieces(chat) > 4
        assert self.pieces(held) == 1
        assert self.pieces(some) > 4
        assert self.pieces(some.bind_tools([tool])) == 1

    def test_enabled_inside_invoke(self, pair, chat):
        always = ChatDeepen.from_ensemble(pair, max_new_tokens=12, ignore_eos=True, streaming=True)
        never = ChatDeepen.from_ensemble(pair, max_new_tokens=12, ignore_eos=True, streaming=False)
        assert self.tokens(chat) == 0
        assert self.tokens(chat, stream=True) > 4
        assert self.tokens(always) > 4
        assert self.tokens(always, stream=False) == 0
        assert self.pieces(never) == 1


# Events and traces


@pytest.mark.parametrize("nested", [False, True])
async def test_events_of_a_stream(chat, whole, nested):
    async def ask(prompt):
        return await chat.ainvoke(prompt)

    runnable = RunnableLambda(ask) if nested else chat
    events = runnable.astream_events(PROMPT, version="v2", include_types=["chat_model"])
    told = [event async for event in events]
    kinds = [event["event"] for event in told]
    assert kinds[0] == "on_chat_model_start"
    assert kinds[-1] == "on_chat_model_end"
    assert set(kinds[1:-1]) == {"on_chat_model_stream"}
    assert len(kinds) > 4
    assert "".join(event["data"]["chunk"].text for event in told[1:-1]) == whole
    assert told[-1]["data"]["output"].text == whole


@pytest.mark.parametrize("way", WAYS)
async def test_traces_show_the_options_of_the_call(ensemble, way):
    recorder = Recorder()
    chat = ChatDeepen.from_ensemble(ensemble, stop=["x"])
    options = {"temperature": 0.5, "max_tokens": 3}
    await asked(chat, way, "q", {"callbacks": [recorder], "metadata": {"mine": 1}}, **options)
    (start,) = recorder.starts
    assert {name: start["invocation_params"][name] for name in options} == options
    told = start["metadata"]
    assert told["mine"] == 1
    assert (told["ls_provider"], told["ls_model_type"], told["ls_model_name"]) == ("deepen", "chat", "alpha+beta")
    assert (told["ls_temperature"], told["ls_max_tokens"], told["ls_stop"]) == (0.5, 3, ["x"])


# The window


def test_the_profile_is_the_real_window(folders):
    with ChatDeepen(models=[folders["alpha"], folders["beta"]], progress=False, max_tokens=7) as chat:
        profile = chat.profile
        assert (profile["max_input_tokens"], profile["max_output_tokens"]) == (255, 7)
        assert all(profile[name] for name in ("tool_calling", "tool_choice", "structured_output", "text_inputs"))
        assert not any(profile[name] for name in ("image_inputs", "audio_inputs", "image_outputs"))
        full = [HumanMessage("x" * n) for n in range(1, 400)]
        fits = [chat.get_num_tokens_from_messages([message]) <= profile["max_input_tokens"] for message in full]
        longest = fits.index(False) - 1
        assert chat.invoke([full[longest]], ignore_eos=True).usage_metadata["output_tokens"] >= 1
        with pytest.raises(ContextOverflowError):
            chat.invoke([full[longest + 1]])


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_too_long_is_told_before_decoding(load, way):
    with load("alpha", "beta") as ensemble:
        member = hook(ensemble)
        chat, recorder = ChatDeepen.from_ensemble(ensemble), Recorder()
        with pytest.raises(ContextWindowError, match="256"):
            await asked(chat, way, TOO_LONG, {"callbacks": [recorder]})
    assert not member.forwards
    assert not member.prefills
    (error,) = recorder.errors
    assert isinstance(error, ContextWindowError)


# Log-probabilities


@pytest.mark.parametrize("way", WAYS)
async def test_logprobs_are_those_of_the_fused_distribution(pair, chat, way):
    answer = await asked(chat, way, PROMPT, logprobs=3)
    content = answer.response_metadata["logprobs"]["content"]
    assert len(content) == answer.usage_metadata["output_tokens"] == 12
    own = pair.generate([{"role": "user", "content": PROMPT}], max_new_tokens=12, ignore_eos=True, logprobs=3)
    assert [entry["logprob"] for entry in content] == pytest.approx([t.logprob for t in own.logprobs], abs=1e-4)
    assert decoded(bytes(entry["bytes"]) for entry in content) == answer.text
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] == max(top["logprob"] for top in entry["top_logprobs"])
