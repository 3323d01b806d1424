"""DeepenLLM decodes prompts together, whichever way they come."""

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel
from langchain_parts import MODELS, Recorder, submissions
from scheduler_parts import FAILING, PROMPTS, Serving, fails_at, hook

from deepen_core.errors import ClosedError, ContextWindowError, DeepenError, MemberError, PromptError
from deepen_integrations.langchain import DeepenLLM
from deepen_integrations.langchain.partial_failures import PartialFailureError, known_outcomes

TOO_LONG = "word " * 500
ASKED = list(PROMPTS)


@pytest.fixture(scope="module")
def alone(pair):
    """Every prompt's answer when it is asked alone."""
    return [pair.generate(prompt, max_new_tokens=8, ignore_eos=True).text for prompt in ASKED]


@pytest.fixture
def llm(pair):
    return DeepenLLM.from_ensemble(pair, max_new_tokens=8, ignore_eos=True)


def test_a_batch_is_one_submission_and_max_concurrency_cuts_it(llm, pair, alone):
    with submissions(pair) as sizes:
        assert llm.batch(ASKED) == alone
        assert llm.batch(ASKED, config={"max_concurrency": 4}) == alone
        assert llm.with_config(max_concurrency=5).batch(ASKED) == alone
    assert sizes == [6, 4, 2, 5, 1]


def test_max_batch_size_caps_what_is_decoded_together(load):
    with load("alpha", "beta", max_batch_size=3) as ensemble:
        member = hook(ensemble)
        DeepenLLM.from_ensemble(ensemble, max_new_tokens=6, ignore_eos=True).batch(ASKED * 2)
    assert max(member.forwards) == 3


def test_a_batch_says_what_each_prompt_alone_gets(llm, pair, alone):
    assert [llm.invoke(prompt) for prompt in ASKED] == alone
    shuffled = random.Random(3).sample(range(len(ASKED)), len(ASKED))
    assert llm.batch([ASKED[i] for i in shuffled]) == [alone[i] for i in shuffled]


@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_of_16_takes_few_more_steps_than_one_call(load, kind):
    prompts = [f"{ASKED[n % 6]} {n}" for n in range(16)]
    with load("alpha", "beta", max_batch_size=16) as ensemble:
        member = hook(ensemble)
        # A step of a tiny model is shorter than preparing a request: the last would come a dozen steps late.
        member.fail = lambda _: time.sleep(0.02)
        llm = kind.from_ensemble(ensemble, max_new_tokens=24, ignore_eos=True)
        steps = [len(member.forwards)]
        for ask in (lambda: llm.invoke(prompts[0]), lambda: llm.batch(prompts)):
            ask()
            steps.append(len(member.forwards))
    one, sixteen = steps[1] - steps[0], steps[2] - steps[1]
    assert one == 24
    assert sixteen <= one + 8  # long prompts are read in some steps before
    assert max(member.forwards) == 16


def ways():
    """Every way in which LangChain keeps a batch together."""
    template = PromptTemplate.from_template("{p}")
    return {
        "batch": lambda llm, texts: llm.batch(texts),
        "abatch": lambda llm, texts: asyncio.run(llm.abatch(texts)),
        "chain": lambda llm, texts: (template | llm).batch([{"p": t} for t in texts]),
        "chain with exceptions": lambda llm, texts: (template | llm).batch(
            [{"p": t} for t in texts], return_exceptions=True
        ),
        "map": lambda llm, texts: llm.map().invoke(texts),
        "amap": lambda llm, texts: asyncio.run(llm.map().ainvoke(texts)),
        "bind": lambda llm, texts: llm.bind(stop=["\0"]).batch(texts),
        "with_retry": lambda llm, texts: llm.with_retry().batch(texts),
        "awith_retry": lambda llm, texts: asyncio.run(llm.with_retry().abatch(texts)),
        "with_fallbacks": lambda llm, texts: llm.with_fallbacks([RunnableLambda(lambda _: "none")]).batch(texts),
        "configurable": lambda llm, texts: llm.configurable_fields(seed=ConfigurableField(id="seed")).batch(texts),
    }


@pytest.mark.parametrize("way", ways())
def test_wrapped_batches_stay_one_submission(llm, pair, alone, way):
    with submissions(pair) as sizes:
        assert ways()[way](llm, ASKED) == alone
    assert sizes == [6]


class TestThreads(Serving):
    """What LangChain sends from several threads at once is decoded together."""

    @pytest.fixture
    def watched(self, load, alone):
        with load("alpha", "beta") as ensemble:
            member = hook(ensemble)
            yield DeepenLLM.from_ensemble(ensemble, max_new_tokens=8, ignore_eos=True), member

    def test_batch_as_completed(self, watched, alone):
        llm, member = watched
        assert dict(llm.batch_as_completed(ASKED)) == dict(enumerate(alone))
        assert max(member.forwards) > 1

    async def test_abatch_as_completed(self, watched, alone):
        llm, member = watched
        assert {i: text async for i, text in llm.abatch_as_completed(ASKED)} == dict(enumerate(alone))
        assert max(member.forwards) > 1

    def test_runnable_parallel(self, watched, alone):
        llm, member = watched
        branches = {str(i): RunnableLambda(lambda _, p=prompt: p) | llm for i, prompt in enumerate(ASKED)}
        assert list(RunnableParallel(branches).invoke("").values()) == alone
        assert max(member.forwards) > 1

    def test_twenty_threads(self, watched, alone):
        llm, member = watched
        places = [i % len(ASKED) for i in range(20)]
        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(lambda i: llm.invoke(ASKED[i]), places)) == [alone[i] for i in places]
        assert max(member.forwards) > 1

    def test_configured_batches(self, watched):
        llm, member = watched
        runnable = llm.configurable_fields(max_new_tokens=ConfigurableField(id="n"))
        texts = runnable.batch(ASKED, config={"configurable": {"n": 5}})
        assert texts == [llm.invoke(prompt, max_new_tokens=5) for prompt in ASKED]
        assert max(member.forwards) > 1


@pytest.mark.parametrize("way", ["batch", "abatch"])
class TestReturnedExceptions(Serving):
    """With `return_exceptions` only what fails is an exception."""

    def ask(self, way, llm, inputs, **options):
        if way == "batch":
            return llm.batch(inputs, return_exceptions=True, **options)
        return asyncio.run(llm.abatch(inputs, return_exceptions=True, **options))

    def test_only_the_over_long_prompt_fails(self, llm, pair, alone, way):
        recorder = Recorder()
        with submissions(pair) as sizes:
            first, error, last = self.ask(way, llm, [ASKED[0], TOO_LONG, ASKED[1]], config={"callbacks": [recorder]})
        assert (first, last) == (alone[0], alone[1])
        assert isinstance(error, ContextWindowError)
        assert sizes == [2]
        texts = [end.generations[0][0].text for end in recorder.ends]
        assert texts == [alone[0], alone[1]]
        assert recorder.errors[-1] is error

    def test_each_input_keeps_its_own_configuration(self, llm, way):
        recorders = [Recorder(), Recorder()]
        configs = [{"callbacks": [r], "tags": [f"t{n}"]} for n, r in enumerate(recorders)]
        self.ask(way, llm, [ASKED[0], TOO_LONG], config=configs)
        assert [recorders[n].starts[-1]["tags"] for n in (0, 1)] == [["t0"], ["t1"]]
        assert (len(recorders[0].ends), len(recorders[1].ends)) == (1, 0)

    def test_slices_and_wrapped_batches(self, llm, pair, alone, way):
        inputs = [ASKED[0], TOO_LONG, ASKED[1], ASKED[2], TOO_LONG]
        with submissions(pair) as sizes:
            sliced = self.ask(way, llm, inputs, config={"max_concurrency": 2})
            chained = self.ask(way, PromptTemplate.from_template("{p}") | llm, [{"p": one} for one in inputs])
        for outputs in (sliced, chained):
            assert all(isinstance(outputs[n], ContextWindowError) for n in (1, 4))
            assert [outputs[n] for n in (0, 2, 3)] == alone[:3]
        assert sizes[:2] == [1, 2]
        assert sizes[-1] == 3

    def test_a_member_that_fails_in_one_sequence(self, load, way):
        with load("alpha", "beta") as ensemble:
            hook(ensemble, 1).fail = fails_at(ensemble._engine.members[1], FAILING, MemberError("no room"), tokens=2)
            llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=8, ignore_eos=True)
            with submissions(ensemble) as sizes:
                first, failed, last = self.ask(way, llm, [ASKED[0], FAILING, ASKED[0]])
        assert first == last
        assert isinstance(failed, MemberError)
        assert sizes == [3]

    def test_with_a_cache(self, llm, pair, alone, way):
        llm.cache = InMemoryCache()
        llm.invoke(ASKED[2])
        with submissions(pair) as sizes:
            for _ in range(2):
                outputs = self.ask(way, llm, [ASKED[0], ASKED[2], TOO_LONG, ASKED[0]])
                assert [outputs[n] for n in (0, 1, 3)] == [alone[n] for n in (0, 2, 0)]
                assert isinstance(outputs[2], ContextWindowError)
        assert sizes == [2, 0]  # then all but the failing one come from the cache

    def test_inputs_that_cannot_be_read(self, llm, alone, way):
        image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:"}}])
        outputs = self.ask(way, llm, [[image], ASKED[0], 5])
        assert isinstance(outputs[0], PromptError)
        assert outputs[1] == alone[0]
        assert isinstance(outputs[2], ValueError)  # LangChain's own
        assert isinstance(self.ask(way, llm, [[image]])[0], PromptError)

    def test_what_fails_for_all_is_told_for_all(self, load, way):
        llm = DeepenLLM.from_ensemble(ensemble := load("alpha", "beta"))
        ensemble.close()
        assert all(isinstance(one, ClosedError) for one in self.ask(way, llm, ASKED[:2]))

    def test_without_it_the_error_is_raised(self, llm, way):
        with pytest.raises(ContextWindowError):
            llm.batch([ASKED[0], TOO_LONG]) if way == "batch" else asyncio.run(llm.abatch([ASKED[0], TOO_LONG]))


def test_equal_prompts_keep_their_own_outcomes():
    """They differ where answers are sampled."""
    error = DeepenError("no")
    failure = PartialFailureError(["a", "b", "a", "a"], ["first", error, "second", "third"])
    taken = [failure.take(prompt) for prompt in ("a", "a", "b", "a", "a", "c")]
    assert taken == ["a", "a", "b", "a", "a", "c"]
    assert [known_outcomes([prompt]) for prompt in taken] == [["first"], ["second"], [error], ["third"], None, None]
    assert str(failure).startswith("1 of 4 prompts")
    assert "DeepenError: no" in str(failure)


async def test_a_retry_asks_for_the_failed_prompt_only(llm, pair, alone):
    retried = llm.with_retry(
        retry_if_exception_type=(DeepenError,), stop_after_attempt=2, wait_exponential_jitter=False
    )
    with submissions(pair) as sizes:
        outputs = retried.batch([ASKED[0], TOO_LONG], return_exceptions=True)
    assert outputs[0] == alone[0]
    assert isinstance(outputs[1], ContextWindowError)
    assert [size for size in sizes if size] == [1]


def test_one_list_of_candidates_for_each_prompt(llm):
    result = llm.generate([ASKED[0], "", ASKED[0]])
    assert [len(candidates) for candidates in result.generations] == [1, 1, 1]
    assert result.generations[0][0].text == result.generations[2][0].text
    assert llm.generate([]).generations == []
    assert llm.batch([]) == llm.batch([], return_exceptions=True) == []
    assert asyncio.run(llm.abatch([])) == asyncio.run(llm.abatch([], return_exceptions=True)) == []
