"""Streams of DeepenLLM: pieces, endings, what the last piece tells, events."""

import codecs

import pytest
from amounts import seeds
from langchain_core.outputs import GenerationChunk
from langchain_core.runnables import RunnableLambda
from langchain_parts import Recorder, check_the_first_piece

from deepen_core.demo import questions
from deepen_integrations.langchain import DeepenLLM

PROMPT = "The quick brown fox"


@pytest.fixture
def llm(pair):
    return DeepenLLM.from_ensemble(pair, max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def demo(needs_demo):
    with DeepenLLM.demo(max_new_tokens=16) as llm:
        yield llm


@pytest.fixture(scope="module")
def question():
    return next(question for question in questions() if question.known_to == "both")


def chunks_of(llm, prompt, **options):
    recorder = Recorder()
    pieces = list(llm.stream(prompt, config={"callbacks": [recorder]}, **options))
    return pieces, [chunk for _, chunk in recorder.tokens], recorder


def test_invoke_equals_stream_and_holds_no_prompt(demo, question):
    text = demo.invoke(question.prompt)
    assert type(text) is str
    assert text.strip() == question.answer
    assert "".join(demo.stream(question.prompt)) == text
    assert question.text not in text
    assert not any(mark in text for mark in ("<s>", "</s>", "<|", "\ufffd"))


def test_each_piece_is_one_callback_with_its_chunk(llm):
    pieces, chunks, recorder = chunks_of(llm, PROMPT)
    assert len(pieces) > 3
    assert [token for token, _ in recorder.tokens] == [chunk.text for chunk in chunks] == pieces
    assert all(isinstance(chunk, GenerationChunk) for chunk in chunks)
    assert len(recorder.starts) == len(recorder.ends) == 1


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_invoke_tells_tokens_too(llm, way):
    recorder, config = Recorder(), {}
    config["callbacks"] = [recorder]
    text = llm.invoke(PROMPT, config) if way == "invoke" else await llm.ainvoke(PROMPT, config)
    assert len(recorder.tokens) > 3
    assert "".join(token for token, _ in recorder.tokens) == text == llm.invoke(PROMPT)
    (candidate,) = recorder.ends[0].generations[0]
    assert candidate.text == text
    assert candidate.generation_info == recorder.tokens[-1][1].generation_info
    assert recorder.ends[0].llm_output["token_usage"] == candidate.generation_info["usage"]


def test_a_batch_tells_no_tokens(llm):
    """LangChain would take them all for those of the first prompt."""
    recorder = Recorder()
    llm.batch([PROMPT, "Once"], config={"callbacks": [recorder]})
    assert not recorder.tokens
    assert len(recorder.ends) == 2


@pytest.mark.parametrize("way", ["stream", "astream", "invoke", "ainvoke"])
async def test_an_instant_end_is_one_empty_chunk(pair, way):
    """The stop string stands at the very start of the answer."""
    llm = DeepenLLM.from_ensemble(pair, max_new_tokens=12, ignore_eos=True)
    start = llm.invoke(PROMPT)[0]
    recorder = Recorder()
    config, stop = {"callbacks": [recorder]}, [start]
    if way == "stream":
        assert list(llm.stream(PROMPT, config, stop=stop)) == [""]
    elif way == "astream":
        assert [piece async for piece in llm.astream(PROMPT, config, stop=stop)] == [""]
    elif way == "invoke":
        assert llm.invoke(PROMPT, config, stop=stop) == ""
    else:
        assert await llm.ainvoke(PROMPT, config, stop=stop) == ""
    assert [token for token, _ in recorder.tokens] == [""]
    assert recorder.tokens[0][1].generation_info["finish_reason"] == "stop"


async def test_the_last_chunk_tells_and_all_of_them_add_up(llm):
    for logprobs in (None, 2):
        recorder = Recorder()
        assert [p async for p in llm.astream(PROMPT, {"callbacks": [recorder]}, logprobs=logprobs)]
        *others, last = [chunk for _, chunk in recorder.tokens]
        assert all(set(chunk.generation_info or ()) == ({"logprobs"} if logprobs else set()) for chunk in others)
        assert set(last.generation_info) - {"logprobs"} == {"finish_reason", "timings", "usage", "model_name"}
        assert ("logprobs" in last.generation_info) == (logprobs is not None)
        whole = sum(others[1:], others[0]) + last
        assert {**whole.generation_info, "logprobs": 0} == {**last.generation_info, "logprobs": 0}
        assert whole.generation_info["model_name"] == "alpha+beta"


def test_finish_reasons(llm, demo, question):
    def reason(model, prompt, **options):
        return model.generate([prompt], **options).generations[0][0].generation_info["finish_reason"]

    assert reason(demo, question.prompt) == "stop"  # the ensemble ends its answer
    assert reason(demo, question.prompt, max_new_tokens=1) == "length"
    assert reason(llm, PROMPT) == "length"
    assert reason(llm, PROMPT, stop=[llm.invoke(PROMPT)[-1]]) == "stop"


class TestStopStrings:
    """A stop string is cut exactly, wherever it was given and however its tokens fall."""

    @pytest.fixture
    def whole(self, demo, question):
        text = demo.invoke(question.prompt, max_new_tokens=24, ignore_eos=True)
        assert len(text) > 20
        return text

    @pytest.fixture
    def told(self, demo):
        return demo.with_options(max_new_tokens=24, ignore_eos=True)

    @pytest.fixture
    def stop(self, whole):
        middle = len(whole) // 2
        return whole[middle - 4 : middle + 4]  # longer than a token

    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch", "bind", "init"])
    async def test_every_way(self, told, whole, stop, question, way):
        prompt = question.prompt
        if way == "invoke":
            text = told.invoke(prompt, stop=[stop])
        elif way == "ainvoke":
            text = await told.ainvoke(prompt, stop=[stop])
        elif way == "stream":
            text = "".join(told.stream(prompt, stop=[stop]))
        elif way == "astream":
            text = "".join([piece async for piece in told.astream(prompt, stop=[stop])])
        elif way == "batch":
            (text, _) = told.batch([prompt, prompt], stop=[stop])
        elif way == "abatch":
            (text, _) = await told.abatch([prompt, prompt], stop=[stop])
        elif way == "bind":
            text = told.bind(stop=[stop]).invoke(prompt)
        else:
            text = told.with_options(stop=[stop]).invoke(prompt)
        assert text == whole.partition(stop)[0]

    def test_no_part_of_it_is_ever_shown(self, told, whole, stop, question):
        before, shown = whole.partition(stop)[0], ""
        for piece in told.stream(question.prompt, stop=[stop]):
            shown += piece
            assert before.startswith(shown)

    def test_the_earliest_wins(self, told, whole, question):
        early, late = whole[5:8], whole[12:16]
        for stops in ([early, late], [late, early]):
            assert told.invoke(question.prompt, stop=stops) == whole[: min(whole.index(early), whole.index(late))]

    def test_a_call_overrides_and_an_empty_list_disables(self, told, whole, stop, question):
        own = told.with_options(stop=[whole[2:5]])
        assert own.invoke(question.prompt, stop=[stop]) == whole.partition(stop)[0]
        assert own.invoke(question.prompt, stop=[]) == whole
        assert own.invoke(question.prompt) == whole.partition(whole[2:5])[0]


def test_characters_of_several_tokens_come_whole(load):
    """Random members speak single bytes; what becomes a character is shown once it is one."""
    with load("alpha", "beta") as ensemble:
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=40, ignore_eos=True, temperature=1.5)
        split = 0
        for seed in seeds(10):
            _, chunks, recorder = chunks_of(llm, "你好，世界。", seed=seed)
            text = "".join(chunk.text for chunk in chunks)
            assert text == llm.invoke("你好，世界。", seed=seed) == recorder.ends[0].generations[0][0].text
            (answer,) = ensemble.generate(["你好，世界。"], llm.sampling({"seed": seed}))
            vocabulary = ensemble._engine.members[0].tokenizer.vocabulary
            spoken = [vocabulary.token_bytes(i) or b"" for i in answer.token_ids]
            unfinished_left_out = codecs.getincrementaldecoder("utf-8")("replace")
            assert text == unfinished_left_out.decode(b"".join(spoken))
            whole = [b for b in spoken if b.decode("utf-8", "ignore").encode() == b]
            split += len(whole) < len(spoken)
        assert split


def test_the_first_piece_comes_early(load):
    with load("alpha", "beta") as ensemble:
        check_the_first_piece(ensemble, DeepenLLM.from_ensemble(ensemble, max_new_tokens=200, ignore_eos=True))


@pytest.mark.parametrize("nested", [False, True])
async def test_events_of_a_stream(llm, nested):
    async def ask(prompt):
        return await llm.ainvoke(prompt)

    runnable = RunnableLambda(ask) if nested else llm
    events = [event async for event in runnable.astream_events(PROMPT, version="v2", include_types=["llm"])]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "on_llm_start"
    assert kinds[-1] == "on_llm_end"
    assert set(kinds[1:-1]) == {"on_llm_stream"}
    assert len(kinds) > 4
    pieces = [event["data"]["chunk"] for event in events[1:-1]]
    assert "".join(piece if isinstance(piece, str) else piece.text for piece in pieces) == llm.invoke(PROMPT)
