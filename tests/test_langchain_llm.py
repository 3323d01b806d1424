"""DeepenLLM in LangChain: batches, streams, callbacks, cache, usage; and a chain on the real demo."""

import json

import pytest
import yaml
from langchain_core.caches import InMemoryCache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import GenerationChunk
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_parts import Recorder

from deepen_core.demo import questions
from deepen_core.errors import ContextWindowError, DeepenError, SamplingError
from deepen_integrations.langchain import DeepenLLM


@pytest.fixture
def llm(ensemble):
    ensemble.answers = {"a": " one", "b": " two words", "c": " three long words"}
    return DeepenLLM.from_ensemble(ensemble)


# Batches


def test_a_batch_is_one_call_of_the_engine(llm, ensemble):
    assert llm.batch(["a", "b", "c"]) == [" one", " two words", " three long words"]
    assert [prompt for prompt, _ in ensemble.requests] == [["a", "b", "c"]]


def test_max_concurrency_is_the_size_of_a_batch(llm, ensemble):
    llm.batch(["a", "b", "c"], config={"max_concurrency": 2})
    assert [prompt for prompt, _ in ensemble.requests] == [["a", "b"], ["c"]]


def test_a_batch_stays_one_call_when_wrapped(llm, ensemble):
    chain = PromptTemplate.from_template("{p}") | llm.bind(max_tokens=1).with_retry()
    assert chain.batch([{"p": "a"}, {"p": "b"}]) == [" one", " two"]
    assert len(ensemble.requests) == 1


async def test_an_async_batch_is_one_call_of_the_engine(llm, ensemble):
    assert await llm.abatch(["a", "b"]) == [" one", " two words"]
    assert len(ensemble.requests) == 1


def test_equal_prompts_and_no_prompts(llm):
    assert llm.batch(["a", "a"]) == [" one", " one"]
    assert llm.batch([]) == []
    assert llm.generate([]).generations == []


def test_a_short_answer_list_is_an_error_and_not_a_short_batch(llm, ensemble):
    ensemble.generate = lambda prompts, params, **options: [ensemble._answer(prompts[0], params[0])]
    with pytest.raises(ValueError, match="zip"):
        llm.batch(["a", "b"])


# Usage and results


def test_usage_of_each_prompt_and_of_all(llm):
    result = llm.generate(["a", "b"], max_new_tokens=2)
    infos = [candidates[0].generation_info for candidates in result.generations]
    assert all(info.pop("timings")["total_s"] >= 0 for info in infos)
    assert infos == [
        {
            "finish_reason": reason,
            "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens},
            "model_name": "alpha+beta",
        }
        for reason, tokens in [("stop", 1), ("length", 2)]
    ]
    assert result.llm_output == {
        "token_usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
        "model_name": "alpha+beta",
    }
    json.dumps([infos, result.llm_output])


def test_logprobs_are_reported_where_asked_for(llm):
    info = llm.generate(["b"], logprobs=2).generations[0][0].generation_info
    first, second = info["logprobs"]["content"]
    assert (first["token"], first["logprob"], bytes(first["bytes"])) == (" two", -0.5, b" two")
    assert [other["token"] for other in second["top_logprobs"]] == [" words", " Oslo"]
    assert "logprobs" not in llm.generate(["b"]).generations[0][0].generation_info


def test_warnings_are_reported(llm, ensemble, monkeypatch):
    answer = ensemble.generate("a")
    warned = type(answer)(**{**vars(answer), "warnings": ["lowered"]})
    monkeypatch.setattr(ensemble, "generate", lambda prompts, params, **options: [warned])
    assert llm.generate(["a"]).generations[0][0].generation_info["warnings"] == ["lowered"]


def test_tokens_are_counted_by_the_main_member(llm):
    assert llm.get_token_ids("one two") == [3, 4]
    assert llm.get_num_tokens("one two three") == 3
    assert DeepenLLM.from_ensemble(llm.ensemble, custom_get_token_ids=lambda text: [0]).get_num_tokens("a b") == 1


async def test_the_embedding_is_that_of_the_other_framework():
    from deepen_integrations.langchain import HashingEmbeddings
    from deepen_integrations.llama_index import HashingEmbedding

    texts = ["Where does Felix live?", "Felix lives in Lisbon.", ""]
    embeddings = HashingEmbeddings()
    vectors = embeddings.embed_documents(texts)
    assert vectors == [embeddings.embed_query(text) for text in texts] == await embeddings.aembed_documents(texts)
    assert vectors == [HashingEmbedding().get_text_embedding(text) for text in texts]
    assert [len(vector) for vector in HashingEmbeddings(dimension=8).embed_documents(texts)] == [8, 8, 8]


# Streams


def test_a_stream_is_invoke_in_pieces_with_a_callback_each(llm):
    recorder = Recorder()
    pieces = list(llm.stream("c", config={"callbacks": [recorder]}))
    assert "".join(pieces) == llm.invoke("c")
    assert [token for token, _ in recorder.tokens] == pieces
    assert all(isinstance(chunk, GenerationChunk) and chunk.text == token for token, chunk in recorder.tokens)
    assert len(recorder.ends) == 1


def test_only_the_last_chunk_tells_usage(llm):
    recorder = Recorder()
    list(llm.stream("c", config={"callbacks": [recorder]}))
    *others, last = [chunk.generation_info for _, chunk in recorder.tokens]
    assert others
    assert not any(others)
    assert recorder.ends[0].generations[0][0].generation_info == last
    del last["timings"]
    assert last == {
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
        "model_name": "alpha+beta",
    }


def test_an_empty_answer_is_one_empty_chunk(llm, ensemble):
    ensemble.answers["nothing"] = ""
    assert list(llm.stream("nothing")) == [""]
    assert llm.invoke("nothing") == ""


def test_a_stream_takes_options(llm, ensemble):
    assert "".join(llm.stream("c", max_tokens=1, temperature=0.5)) == " three"
    assert ensemble.requests[-1][1].temperature == 0.5
    with pytest.raises(SamplingError, match="temperature"):
        list(llm.stream("c", temprature=1))


def test_an_abandoned_stream_is_closed(llm, ensemble):
    stream = llm.stream("c")
    assert next(stream) == " three"
    assert ensemble.open_streams == 1
    stream.close()
    assert ensemble.open_streams == 0


def test_an_engine_error_in_a_stream_comes_through(llm, ensemble):
    ensemble.failure = ContextWindowError("too long")
    recorder = Recorder()
    with pytest.raises(ContextWindowError, match="too long"):
        list(llm.stream("c", config={"callbacks": [recorder]}))
    assert [error.__cause__ for error in recorder.errors] == [ensemble.failure]
    assert ensemble.open_streams == 0
    ensemble.failure = None
    assert llm.invoke("a") == " one"


def test_a_failing_callback_ends_the_stream(llm, ensemble):
    class Failing(Recorder):
        def on_llm_new_token(self, token, **kwargs):
            raise KeyError(token)

    with pytest.raises(KeyError):
        list(llm.stream("c", config={"callbacks": [Failing()]}))
    assert ensemble.open_streams == 0


async def test_async_streams_and_calls_give_the_same(llm):
    pieces = [piece async for piece in llm.astream("c", max_tokens=2)]
    assert "".join(pieces) == await llm.ainvoke("c", max_tokens=2) == " three long"


def test_an_engine_error_comes_through(llm, ensemble):
    ensemble.failure = ContextWindowError("too long")
    for call in (llm.invoke, llm.stream, lambda p: llm.batch([p])):
        with pytest.raises(ContextWindowError, match="too long"):
            list(call("a"))


# Options of a call: cache and traces


async def test_the_cache_tells_calls_apart(llm, ensemble):
    llm.cache = InMemoryCache()
    assert llm.invoke("c") == " three long words"
    assert llm.invoke("c", max_tokens=1) == " three"
    assert llm.bind(max_new_tokens=2).invoke("c") == " three long"
    assert llm.invoke("c", stop=[" words"]) == " three long"
    assert llm.invoke("c", seed=4) == " three long words"
    assert await llm.ainvoke("c", temperature=0.5, max_tokens=1) == " three"
    assert llm.batch(["c", "a"], max_tokens=1) == [" three", " one"]
    assert len(ensemble.requests) == 7
    assert llm.invoke("c") == " three long words"
    assert llm.invoke("c", max_tokens=1) == " three"
    assert await llm.ainvoke("c", temperature=0.5, max_tokens=1) == " three"
    assert llm.batch(["c", "a"], max_tokens=1) == [" three", " one"]
    assert len(ensemble.requests) == 7


def test_the_cache_tells_models_apart(loads):
    cache = InMemoryCache()
    for options in ({}, {"temperature": 0.5}, {"weights": [1, 2]}, {"fusion": "deepen-paper"}, {"stop": ["x"]}):
        DeepenLLM(models=["a", "b"], cache=cache, **options).invoke("q")
        DeepenLLM(models=["a", "b"], cache=cache, **options).invoke("q")
    assert sum(len(load.ensemble.requests) for load in loads) == 5


def test_the_cache_tells_given_ensembles_apart(ensemble):
    cache, other = InMemoryCache(), type(ensemble)()
    other.default = " Oslo"
    assert DeepenLLM.from_ensemble(ensemble, cache=cache).invoke("q") == " The answer is Lisbon."
    assert DeepenLLM.from_ensemble(other, cache=cache).invoke("q") == " Oslo"


async def test_traces_show_the_options_of_the_call(llm):
    recorder = Recorder()
    llm.invoke("a", config={"callbacks": [recorder], "tags": ["t"]}, temperature=0.5, max_tokens=3)
    await llm.ainvoke("a", config={"callbacks": [recorder]}, temperature=0.25)
    list(llm.stream("a", config={"callbacks": [recorder]}, temperature=0.75))
    seen = [start["invocation_params"] for start in recorder.starts]
    assert [params["temperature"] for params in seen] == [0.5, 0.25, 0.75]
    assert seen[0]["max_new_tokens"] == 3
    assert recorder.starts[0]["tags"] == ["t"]
    assert recorder.starts[0]["metadata"]["ls_model_name"] == "alpha+beta"
    assert recorder.starts[0]["metadata"]["ls_max_tokens"] == 3
    assert '"temperature": 0.5' in json.dumps(llm.with_options(temperature=0.5)._serialized)


async def test_empty_callbacks_are_fine_in_async_code(llm):
    """langchain-core 1.7.2 itself fails on them."""
    assert (await llm.agenerate(["a"], callbacks=[])).generations[0][0].text == " one"


def test_configurable_fields_need_no_other_ensemble(llm, ensemble):
    runnable = llm.configurable_fields(max_new_tokens=ConfigurableField(id="length"))
    assert runnable.invoke("c", config={"configurable": {"length": 1}}) == " three"
    assert runnable.invoke("c") == " three long words"
    assert len(ensemble.requests) == 2


def test_identifying_params_are_plain_data(loads, tmp_path):
    llm = DeepenLLM(models=["a", "b"], weights=[1, 2], stop=["x"])
    assert llm._identifying_params["default_stop"] == ["x"]
    llm.save(tmp_path / "llm.json")
    llm.save(tmp_path / "llm.yaml")
    stored = json.loads((tmp_path / "llm.json").read_text(encoding="utf-8"))
    assert stored == yaml.safe_load((tmp_path / "llm.yaml").read_text(encoding="utf-8"))
    assert stored["_type"] == "deepen"
    assert [m["model"] for m in stored["models"]] == ["a", "b"]
    assert not loads


# The real engine


@pytest.fixture(scope="module")
def demo(needs_demo):
    with DeepenLLM.demo(max_new_tokens=16) as llm:
        yield llm


@pytest.fixture(scope="module")
def asked():
    return [question for question in questions() if question.known_to == "both"][:3]


def test_demo_chain(demo, asked):
    chain = PromptTemplate.from_template("Question: {question}\nAnswer:") | demo | StrOutputParser()
    inputs = [{"question": question.text} for question in asked]
    answers = chain.batch(inputs)
    assert answers == [chain.invoke(one) for one in inputs]
    assert answers == ["".join(chain.stream(one)) for one in inputs]
    right = sum(answer.strip() == question.answer for answer, question in zip(answers, asked, strict=True))
    assert right >= 2, answers


def test_demo_usage_and_tokens(demo, asked):
    result = demo.generate([asked[0].prompt])
    info = result.generations[0][0].generation_info
    text = result.generations[0][0].text
    assert info["usage"]["completion_tokens"] == len(demo.ensemble.tokenize(text))
    assert info["finish_reason"] == "stop"
    assert demo.ensemble.info.members[0].name in result.llm_output["model_name"]


def test_demo_errors_are_the_engines(demo):
    with pytest.raises(ContextWindowError):
        demo.invoke("word " * 5000)
    with pytest.raises(DeepenError):
        list(demo.stream("word " * 5000))
