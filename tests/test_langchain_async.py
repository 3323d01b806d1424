"""DeepenLLM and ChatDeepen in event loops, and what ends a request early."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from langchain_parts import MODELS, WAYS, Recorder, said, text_of
from scheduler_parts import ENDLESS, PROMPT, Serving, eventually, hook, sequences_held, turn_by_turn

from deepen_core.errors import ClosedError, MemberError
from deepen_integrations import shared_ensembles
from deepen_integrations.langchain import ChatDeepen, DeepenLLM

OPTIONS = {"max_new_tokens": 200, "ignore_eos": True}


@pytest.fixture(params=MODELS, scope="module")
def kind(request):
    """Of model."""
    return request.param


@pytest.fixture(scope="module")
def demo(needs_demo, kind):
    with kind.demo(**OPTIONS) as llm:
        llm.invoke(PROMPT, max_new_tokens=2)
        yield llm


def streaming(kind):
    """The options with which a model tells of tokens in `invoke` too: a chat model does where LangChain streams."""
    return {"streaming": True} if kind is ChatDeepen else {}


@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch"])
async def test_the_event_loop_goes_on(load, kind, way):
    with load("alpha", "beta") as ensemble:
        member = hook(ensemble)
        llm = kind.from_ensemble(ensemble, max_new_tokens=60, ignore_eos=True)

        async def ask():
            if way == "abatch":
                return "".join(map(said, await llm.abatch([PROMPT] * 4)))
            return await text_of(llm, way, PROMPT)

        assert len(await turn_by_turn(member, ask())) > 60
        assert len(member.forwards) >= 60


async def test_the_default_executor_stays_free(demo, monkeypatch):
    def refuse(*arguments):
        pytest.fail("the executor was used")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "run_in_executor", refuse)
    assert await demo.ainvoke(PROMPT, max_new_tokens=3)
    assert await demo.abatch([PROMPT, "Once"], max_new_tokens=3)
    assert [piece async for piece in demo.astream(PROMPT, max_new_tokens=3)]


@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch"])
async def test_the_event_loop_goes_on_while_the_first_call_loads(loads, monkeypatch, kind, way):
    load = shared_ensembles._load

    loading, turned = threading.Event(), threading.Event()

    def slowly(*arguments):
        loading.set()
        assert turned.wait(60), "the event loop stood still while the models were loaded"
        return load(*arguments)

    monkeypatch.setattr(shared_ensembles, "_load", slowly)
    llm = kind(models=["a"])

    async def ask():
        if way == "abatch":
            return said((await llm.abatch(["q", "r"]))[0])
        return await text_of(llm, way, "q")

    task = asyncio.ensure_future(ask())
    while not loading.is_set():
        await asyncio.sleep(0.001)
    assert not task.done()
    turned.set()
    assert await task == " The answer is Lisbon."
    assert len(loads) == 1


class Interrupted(Serving):
    """An ensemble whose steps are counted by permits, and a model on it."""

    @pytest.fixture
    def llm(self, held, kind):
        ensemble, self.member = held
        self.ensemble = ensemble
        self.member.permits.release(3)
        return kind.from_ensemble(ensemble, **ENDLESS)

    async def begun(self):
        for _ in range(2000):
            if len(self.member.forwards) >= 2:
                return
            await asyncio.sleep(0.005)
        pytest.fail("no token came")

    def check_it_ends_within_two_steps(self, llm):
        forwards = len(self.member.forwards)
        self.member.permits.release(2)
        eventually(lambda: sequences_held(self.ensemble) == 0)
        assert len(self.member.forwards) <= forwards + 2
        self.member.permits.release(10_000)
        assert llm.invoke(PROMPT, max_new_tokens=4)


class TestCancellation(Interrupted):
    @pytest.mark.parametrize("way", ["cancel", "wait_for", "aclose", "break"])
    async def test_the_sequence_is_free_within_two_steps(self, llm, kind, way):
        recorder = Recorder()
        config = {"callbacks": [recorder]}
        if way in {"cancel", "wait_for"}:
            task = asyncio.ensure_future(llm.ainvoke(PROMPT, config))
            await self.begun()
            if way == "cancel":
                task.cancel()
            with pytest.raises(asyncio.CancelledError if way == "cancel" else asyncio.TimeoutError):
                await (task if way == "cancel" else asyncio.wait_for(task, 0.01))
        else:
            stream = llm.astream(PROMPT, config)
            if way == "aclose":
                assert await anext(stream)
                await stream.aclose()
            else:
                async for _ in stream:
                    break
                del stream
                await asyncio.sleep(0.05)
        await asyncio.to_thread(self.check_it_ends_within_two_steps, llm)
        # LangChain's chat models tell nothing of an `ainvoke` that is cancelled; those for text do.
        untold = kind is ChatDeepen and way in {"cancel", "wait_for"}
        assert len(recorder.errors) == (0 if untold else 1)
        assert recorder.after_the_end == 0

    @pytest.mark.filterwarnings("ignore:The method:langchain_core._api.LangChainBetaWarning")
    async def test_streams_of_events_that_are_closed(self, llm, kind):
        async for event in llm.astream_events(PROMPT, version="v2"):
            if event["event"].endswith("_stream"):
                break
        await asyncio.sleep(0.05)
        await asyncio.to_thread(self.check_it_ends_within_two_steps, llm)
        if kind is ChatDeepen:  # only chat models have events of version 3
            stream = await llm.astream_events(PROMPT, version="v3")
            await anext(aiter(stream))
            await stream.aclose()
            await asyncio.to_thread(self.check_it_ends_within_two_steps, llm)

    async def test_a_cancelled_batch(self, llm):
        task = asyncio.ensure_future(llm.abatch([PROMPT, "Once"]))
        await self.begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(self.check_it_ends_within_two_steps, llm)

    def test_a_closed_stream(self, llm):
        stream = llm.stream(PROMPT)
        assert next(stream)
        stream.close()
        self.check_it_ends_within_two_steps(llm)


class TestClosing(Interrupted):
    @pytest.mark.parametrize("way", ["aclose", "close"])
    async def test_one_error_with_what_there_was(self, llm, kind, way):
        recorder = Recorder()
        config = {"callbacks": [recorder]}
        if way == "aclose":
            stream = llm.astream(PROMPT, config)
            first, second = await anext(stream), await anext(stream)
            await stream.aclose()
        else:
            stream = llm.stream(PROMPT, config)
            first, second = next(stream), next(stream)
            stream.close()
        self.member.permits.release(10_000)
        await asyncio.sleep(0.1)
        assert [type(error) for error in recorder.errors] == [GeneratorExit]
        # For text LangChain adds a piece once the next is asked for.
        told = first if kind is DeepenLLM else first + second
        assert recorder.partial[0].generations[0][0].text == said(told)
        assert recorder.after_the_end == 0
        assert not recorder.ends


@pytest.mark.parametrize("way", WAYS)
async def test_an_engine_error_comes_through_at_once(load, kind, way):
    with load("alpha", "beta") as ensemble:
        member = hook(ensemble, 1)

        def fail(sequences):
            if len(member.forwards) == 4:
                raise MemberError("out of memory")

        member.fail = fail
        llm = kind.from_ensemble(ensemble, max_new_tokens=30, ignore_eos=True)
        recorder = Recorder()
        with pytest.raises(MemberError, match="out of memory"):
            await text_of(llm, way, PROMPT, {"callbacks": [recorder]})
        assert len(member.forwards) == 4
        assert len(recorder.errors) == 1
        member.fail = lambda sequences: None
        assert llm.invoke(PROMPT, max_new_tokens=4)


class TestFailingCallbacks(Interrupted):
    @pytest.mark.parametrize("way", WAYS)
    async def test_a_failing_callback_frees_the_sequence(self, llm, kind, way):
        llm = llm.model_copy(update=streaming(kind))
        recorder = Recorder(fail_at=0)
        with pytest.raises(KeyError):
            await text_of(llm, way, PROMPT, {"callbacks": [recorder]})
        await asyncio.to_thread(self.check_it_ends_within_two_steps, llm)
        assert len(recorder.tokens) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_timeout_ends_the_answer_with_what_there_is(load, kind, way, monkeypatch):
    recorder = Recorder()
    with load("alpha", "beta") as ensemble:
        member = hook(ensemble)
        # On which each forward takes a second.
        clock = SimpleNamespace(perf_counter=lambda: 1.0 + len(member.forwards), monotonic=time.monotonic)
        for module in ("config.sampling", "engine.deadline", "engine.frontend", "engine.sequence", "engine.worker"):
            monkeypatch.setattr(f"deepen_core.{module}.time", clock)
        llm = kind.from_ensemble(ensemble, **ENDLESS)
        text = await text_of(llm, way, PROMPT, {"callbacks": [recorder]}, timeout=5.5)
        assert llm.with_options(timeout=0.25).timeout == 0.25
    (generation,) = recorder.ends[0].generations[0]
    told = generation.message.response_metadata if kind is ChatDeepen else generation.generation_info
    assert told["finish_reason"] == "timeout"
    assert text
    assert len(member.forwards) == 6


async def test_sync_calls_and_sync_callbacks_in_a_running_loop(pair, kind):
    """As in a notebook."""
    llm = kind.from_ensemble(pair, max_new_tokens=4, ignore_eos=True, **streaming(kind))
    recorder = Recorder()
    text = await text_of(llm, "invoke", PROMPT)
    assert await text_of(llm, "ainvoke", PROMPT, {"callbacks": [recorder]}) == text
    assert await text_of(llm, "stream", PROMPT) == text
    assert "".join(token for token, _ in recorder.tokens) == text


async def test_several_loops_at_once(pair, kind):
    """As servers with several workers have."""
    llm = kind.from_ensemble(pair, max_new_tokens=6, ignore_eos=True)
    answers = await asyncio.gather(*(asyncio.to_thread(asyncio.run, llm.ainvoke(PROMPT)) for _ in range(5)))
    assert set(map(said, answers)) == {said(await llm.ainvoke(PROMPT))}


def _ask_in_child(llm, answers):
    answers.put(said(llm.invoke(PROMPT, max_new_tokens=4)))


@pytest.mark.slow
def test_a_spawned_process_loads_its_own(folders, kind):
    llm = kind(models=[folders["alpha"], folders["beta"]], device="cpu", progress=False, ignore_eos=True)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_ask_in_child, args=(llm, answers))
    child.start()
    told = answers.get(timeout=120)
    child.join(60)
    assert child.exitcode == 0
    with llm:
        assert said(llm.invoke(PROMPT, max_new_tokens=4)) == told


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_is_told_and_does_not_hang(folders, kind):
    code = f"""
import os, sys
from deepen_core.errors import ClosedError
from deepen_integrations.langchain import {kind.__name__}
models = {[str(folders[n]) for n in ("alpha", "beta")]!r}
llm = {kind.__name__}(models=models, device="cpu", progress=False, max_new_tokens=3)
fresh = os.fork()  # before the first call: the child loads its own
if not fresh:
    llm.invoke("The dog")
    os._exit(3)
assert os.waitpid(fresh, 0)[1] == 3 << 8
llm.invoke("The dog")
late = os.fork()
if not late:
    try:
        llm.invoke("The dog")
    except ClosedError as error:
        os._exit(4 if "fork" in str(error) else 5)
    os._exit(6)
assert os.waitpid(late, 0)[1] == 4 << 8
print("told")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.strip() == "told", run.stderr


def test_a_closed_model_says_so_in_every_way(pair, kind):
    llm = kind.from_ensemble(pair)
    llm.close()
    for way in WAYS:
        with pytest.raises(ClosedError, match=f"{kind.__name__} was closed"):
            asyncio.run(text_of(llm, way, PROMPT))
