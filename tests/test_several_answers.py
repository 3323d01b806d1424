"""Several answers to one prompt, several prompts with options of their own, and the logprobs of each piece."""

import pickle

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_parts import MODELS, said
from llama_index_parts import EIGHT, called
from scheduler_parts import eventually

from deepen_core import Ensemble, SamplingParams
from deepen_core.engine import output_queue
from deepen_core.errors import ConfigurationError, SamplingError
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.llama_index import DeepenToolLLM

PROMPT = "The quick brown fox"
SAMPLED = {"temperature": 1.5, "seed": 5}
STREAMS = [name for name in EIGHT if "stream" in name]


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__)
def model(request, pair):
    return request.param.from_ensemble(pair, max_new_tokens=6, ignore_eos=True, **SAMPLED)


def asks(model, *prompts):
    """A model's arguments of `generate` for these prompts."""
    return [[HumanMessage(prompt)] for prompt in prompts] if isinstance(model, ChatDeepen) else list(prompts)


def texts(result):
    return [[generation.text for generation in each] for each in result.generations]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_prompts_have_options_of_their_own(pair, asynchronous):
    prompts = [PROMPT, "Mira lives in", PROMPT]
    each = [SamplingParams(max_new_tokens=n, temperature=1.5, seed=n) for n in (3, 5, 8)]
    alone = [pair.generate(prompt, one, ignore_eos=True).token_ids for prompt, one in zip(prompts, each, strict=True)]
    options = {"ignore_eos": True}
    answers = (
        await pair.agenerate(prompts, each, **options) if asynchronous else pair.generate(prompts, each, **options)
    )
    assert [answer.token_ids for answer in answers] == alone
    assert [len(ids) for ids in alone] == [3, 5, 8]


def test_options_must_be_as_many_as_prompts(pair):
    with pytest.raises(SamplingError, match="2 SamplingParams for 3 prompts: give one each, or one for all"):
        pair.generate([PROMPT] * 3, [SamplingParams()] * 2)
    with pytest.raises(SamplingError, match="params is a list: one prompt takes one SamplingParams"):
        pair.generate(PROMPT, [SamplingParams()])


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_answers_are_those_of_the_next_seeds(model, asynchronous):
    prompts = [PROMPT, "Mira lives in"]
    given = asks(model, *prompts)
    result = await model.agenerate(given, n=3) if asynchronous else model.generate(given, n=3)
    expected = [[said(model.invoke(prompt, seed=5 + number)) for number in range(3)] for prompt in prompts]
    assert texts(result) == expected
    assert len({*expected[0]}) == 3
    once = model.generate(given).llm_output["token_usage"]
    usage = result.llm_output["token_usage"]
    assert usage["prompt_tokens"] == once["prompt_tokens"]
    assert usage["completion_tokens"] == 3 * once["completion_tokens"] == 36
    assert usage["total_tokens"] == usage["prompt_tokens"] + 36


def test_without_a_seed_answers_differ(model):
    free = model.model_copy(update={"seed": None, "n": 4})
    assert len({*texts(free.generate(asks(model, PROMPT)))[0]}) > 1


def test_answers_are_decoded_together(model, monkeypatch):
    calls = []
    generate = Ensemble.generate

    def counted(self, prompts, *given, **options):
        calls.append(len(prompts))
        return generate(self, prompts, *given, **options)

    monkeypatch.setattr(Ensemble, "generate", counted)
    model.generate(asks(model, PROMPT), n=3)
    assert calls == [3]


def test_the_number_of_answers_is_an_option_as_others_are(model):
    several = model.model_copy(update={"n": 2})
    for copied in (several, pickle.loads(pickle.dumps(several)), model.with_options(n=2)):
        assert len(texts(copied.generate(asks(model, PROMPT)))[0]) == 2
    assert said(several.invoke(PROMPT)) == said(model.invoke(PROMPT))
    assert [*map(said, several.batch([PROMPT] * 2))] == [said(model.invoke(PROMPT))] * 2


def test_caches_know_the_number_of_answers(model):
    model = model.model_copy(update={"cache": InMemoryCache()})
    for n in (1, 2, 3, 2):
        assert len(texts(model.generate(asks(model, PROMPT), n=n))[0]) == n


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"n": 3, "temperature": 0}, "n is 3, but with temperature 0 all 3 answers are equal: set it above 0"),
        ({"n": 0}, "n is 0: give the number of answers, 1 or more"),
        ({"n": True}, "n is True"),
        ({"n": "3"}, "n is '3'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(kind, options, problem):
    model = kind(models=["/nowhere"])
    with pytest.raises(SamplingError, match=problem):
        model.generate(asks(model, PROMPT), **options)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_is_one_answer(model, asynchronous):
    """A call that wants several is refused; a model that gives several in `generate` streams one."""
    with pytest.raises(SamplingError, match="n is 2: a stream is one answer"):
        next(model.stream(PROMPT, n=2))
    several, expected = model.model_copy(update={"n": 2}), said(model.invoke(PROMPT))
    stream = several.astream(PROMPT)
    pieces = [piece async for piece in stream] if asynchronous else list(several.stream(PROMPT))
    assert "".join(map(said, pieces)) == expected
    if isinstance(model, ChatDeepen):
        streaming = model.model_copy(update={"streaming": True})
        assert len(texts(streaming.generate(asks(model, PROMPT), n=2))[0]) == 2


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
async def test_other_ways_give_one_and_leave_nothing_wrong_in_the_cache(model, way):
    several = model.model_copy(update={"n": 3, "cache": InMemoryCache()})
    for options in ({}, {"return_exceptions": True}) if "batch" in way else ({},):
        given = [PROMPT, "Mira lives in"] if "batch" in way else PROMPT
        asked = getattr(several, way)(given, **options)
        answers = await asked if way.startswith("a") else asked
        assert said(answers[0] if "batch" in way else answers) == said(model.invoke(PROMPT))
        assert [len(each) for each in texts(several.generate(asks(model, PROMPT, "Mira lives in")))] == [3, 3]
    assert said(several.invoke(PROMPT, temperature=0)) == said(model.invoke(PROMPT, temperature=0))


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_fields_of_the_adapters_are_validated_when_they_are_assigned(kind):
    model = kind(models=["/nowhere"], n=None)
    assert model.n == 1
    for name, wrong in (("n", 0), ("n", "3"), ("strict", "perhaps"), ("progress", [])):
        with pytest.raises(ConfigurationError, match=f"Option '{name}' is "):
            setattr(model, name, wrong)
        with pytest.raises(ConfigurationError, match=f"Option '{name}' is "):
            model.model_copy(update={name: wrong})
    model.n, model.strict = 3, True
    model.n = model.strict = None
    assert (model.n, model.strict) == (1, False)


# Logprobs of each piece


def bytes_of(entries):
    return b"".join(bytes(entry["bytes"]) for entry in entries)


def test_each_piece_of_the_engine_has_those_of_its_tokens(pair):
    pieces = list(pair.stream(PROMPT, max_new_tokens=12, ignore_eos=True, logprobs=2))
    whole = pieces[-1].generation
    assert [entry for piece in pieces for entry in piece.logprobs] == whole.logprobs
    assert all([entry.token_id for entry in piece.logprobs] == piece.token_ids for piece in pieces)
    assert all(piece.logprobs is None for piece in pair.stream(PROMPT, max_new_tokens=4))


def test_pieces_that_wait_are_joined_with_their_logprobs(pair, monkeypatch):
    monkeypatch.setattr(output_queue, "_LONGEST", 2)
    handle = pair.submit(PROMPT, max_new_tokens=12, ignore_eos=True, logprobs=0)
    whole = pair.generate(PROMPT, max_new_tokens=12, ignore_eos=True, logprobs=0)
    eventually(lambda: handle.done)
    pieces = list(handle)
    assert len(pieces) == 2
    assert [entry.token_id for piece in pieces for entry in piece.logprobs] == whole.token_ids


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_each_chunk_of_langchain_has_those_since_the_last(model, asynchronous):
    options = {"max_new_tokens": 12, "logprobs": 2}
    if isinstance(model, DeepenLLM):
        found = [chunk.generation_info for chunk in model._stream(PROMPT, **options)]
        expected = model.generate([PROMPT], **options).generations[0][0].generation_info
    else:
        stream = model.astream(PROMPT, **options)
        chunks = [chunk async for chunk in stream] if asynchronous else list(model.stream(PROMPT, **options))
        found, expected = [c.response_metadata for c in chunks], model.invoke(PROMPT, **options).response_metadata
    each = [info["logprobs"]["content"] for info in found]
    assert [entry for entries in each for entry in entries] == expected["logprobs"]["content"]
    assert len(each) > 4
    assert all(each[:-1])


@pytest.mark.parametrize("endpoint", STREAMS)
@pytest.mark.usefixtures("loop_of_llama_index")
def test_each_response_of_llama_index_has_those_of_what_it_adds(endpoint, pair):
    llm = DeepenToolLLM.from_ensemble(pair, max_new_tokens=12, ignore_eos=True, logprobs=1)
    responses = called(llm, endpoint)
    whole = called(llm, endpoint.replace("stream_", ""))[-1]
    assert [token for response in responses for token in response.logprobs or ()] == whole.logprobs
    assert len(whole.logprobs) == 12
    assert len([response for response in responses if response.logprobs]) > 4
