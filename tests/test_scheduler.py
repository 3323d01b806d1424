"""Requests from threads and event loops: handles, breaking off, deadlines, and the worker's life."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import pytest
import scheduler_parts
from scheduler_parts import PROMPTS, eventually, hook, rows_held

from deepen_core.errors import (
    ClosedError,
    ConfigurationError,
    ContextWindowError,
    DeepenError,
    NotDoneError,
    PromptError,
    SamplingError,
)

PROMPT = "The quick brown fox"
OPTIONS = {"max_new_tokens": 12, "ignore_eos": True}
ENDLESS = {"max_new_tokens": 100, "ignore_eos": True}


@pytest.fixture(autouse=True)
def workers():
    """The workers that a test has started; other tests' ensembles may have theirs."""
    before = scheduler_parts.workers()
    return lambda: scheduler_parts.workers() - before


@pytest.fixture
def ensemble(load):
    with load("alpha", "beta", max_batch_size=4) as ensemble:
        yield ensemble


@pytest.fixture
def held(ensemble):
    """The ensemble whose worker takes a step only when it gets a permit, and the permits."""
    member = hook(ensemble, 0)
    member.permits = threading.Semaphore(0)
    yield ensemble, member
    member.permits.release(10_000)


class TestWays:
    def test_all_ways_give_the_same_answer(self, ensemble):
        expected = ensemble.generate(PROMPT, **OPTIONS)
        assert ensemble.submit(PROMPT, **OPTIONS).result().text == expected.text
        assert "".join(c.text for c in ensemble.submit(PROMPT, **OPTIONS)) == expected.text

        async def ask():
            chunks = [c async for c in ensemble.astream(PROMPT, **OPTIONS)]
            handle = await ensemble.asubmit(PROMPT, **OPTIONS)
            pieces = [c.text async for c in handle]
            both = await ensemble.agenerate([PROMPT, "Once"], **OPTIONS)
            return [
                "".join(c.text for c in chunks),
                chunks[-1].generation.text,
                "".join(pieces),
                (await handle.aresult()).text,
                (await ensemble.agenerate(PROMPT, **OPTIONS)).text,
                both[0].text,
            ]

        assert set(asyncio.run(ask())) == {expected.text}

    def test_one_handle_serves_threads_and_loops(self, ensemble):
        handle = ensemble.submit(PROMPT, **ENDLESS)
        assert not handle.done
        found = []
        threads = [threading.Thread(target=lambda: found.append(handle.result().text)) for _ in range(2)]
        threads += [threading.Thread(target=lambda: found.append(asyncio.run(handle.aresult()).text)) for _ in range(2)]
        for thread in threads:
            thread.start()
        pieces = "".join(chunk.text for chunk in handle)
        for thread in threads:
            thread.join()
        assert handle.done
        assert found == [pieces] * 4
        assert list(handle) == []

    def test_pieces_go_to_whoever_takes_them_first(self, ensemble):
        handle, taken = ensemble.submit(PROMPT, **ENDLESS), []
        threads = [threading.Thread(target=lambda: taken.extend(handle)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(len(c.token_ids) for c in taken) == ENDLESS["max_new_tokens"]
        assert sum(c.generation is not None for c in taken) == 1

    def test_callers_share_a_batch_within_its_size(self, held):
        ensemble, member = held
        handles = [ensemble.submit(prompt, **OPTIONS) for prompt in PROMPTS]
        member.permits.release(10_000)
        together = [handle.result().token_ids for handle in handles]
        assert max(member.forwards) == 4
        assert together == [ensemble.generate(prompt, **OPTIONS).token_ids for prompt in PROMPTS]

    def test_a_slow_reader_holds_nobody_up(self, ensemble):
        """What it has not read is joined to few pieces, and is all there."""
        handle = ensemble.submit(PROMPT, **ENDLESS)
        whole = handle.result()
        chunks = list(handle)
        assert len(chunks) <= 32
        assert "".join(c.text for c in chunks) == whole.text
        assert [i for c in chunks for i in c.token_ids] == whole.token_ids
        assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]

    def test_asking_within_a_stream(self, ensemble):
        expected = ensemble.generate("Once", **OPTIONS).text
        for piece, chunk in enumerate(ensemble.stream(PROMPT, **OPTIONS)):
            assert chunk.text or chunk.finish_reason
            if piece < 3:
                assert ensemble.generate("Once", **OPTIONS).text == expected

    def test_facts_and_scores_while_rows_run(self, held):
        ensemble, member = held
        handle = ensemble.submit(PROMPT, **ENDLESS)
        assert ensemble.count_tokens("Once upon") > 0
        assert ensemble.info.members[0].batching
        assert ensemble.context_window == 256
        member.permits.release(10_000)
        assert next(handle).text
        scored = ensemble.score(PROMPT, " jumps over")
        ensemble.prepare(progress=False)
        assert len(handle.result().token_ids) == ENDLESS["max_new_tokens"]
        assert scored.logprobs == pytest.approx(ensemble.score(PROMPT, " jumps over").logprobs, abs=1e-4)

    def test_loops_in_several_threads(self, ensemble):
        expected = {p: ensemble.generate(p, **OPTIONS).text for p in PROMPTS}
        found = []

        async def ask():
            answers = await asyncio.gather(*(ensemble.agenerate(p, **OPTIONS) for p in PROMPTS))
            found.append(dict(zip(PROMPTS, (a.text for a in answers), strict=True)))

        threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 3

    def test_the_event_loop_is_never_held_up(self, held):
        """It ticks on while a step does not come to its end, and its default executor is not touched."""
        ensemble, member = held

        async def ask():
            loop = asyncio.get_running_loop()
            task = asyncio.ensure_future(ensemble.agenerate(PROMPT, **OPTIONS))
            stream = ensemble.astream("Once", **OPTIONS)
            first = asyncio.ensure_future(anext(stream))
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert not task.done()
            assert not first.done()
            member.permits.release(10_000)
            assert (await task).text
            assert (await first).text
            assert loop._default_executor is None
            await stream.aclose()

        asyncio.run(ask())

    def test_reading_a_long_prompt_lets_other_threads_run(self, ensemble):
        text = "The quick brown <|eos|> fox jumps over the lazy dog. " * 8000
        backend = ensemble._members[0].tokenizer.backend
        thread = threading.Thread(target=backend.encode, args=(text,))
        thread.start()
        ticks = 0
        while thread.is_alive():
            time.sleep(0.001)
            ticks += 1
        assert ticks > 5, "the tokenizer kept the interpreter to itself"
        piece = text[:7950]
        assert backend.encode(piece * 2) == backend.encode(piece) * 2


class TestBreakingOff:
    """Each leaves the worker idle after two more steps; a third would wait for a permit that does not come."""

    @pytest.fixture
    def begun(self, held):
        ensemble, member = held

        def more(steps=2):
            member.permits.release(steps)

        yield ensemble, more
        eventually(lambda: rows_held(ensemble) == 0)
        assert ensemble._scheduler._batch.idle

    def test_cancel(self, begun):
        ensemble, more = begun
        handle = ensemble.submit(PROMPT, **ENDLESS)
        more(5)
        assert next(handle).text
        handle.cancel()
        more()
        answer = handle.result(timeout=30)
        assert answer.finish_reason == "cancelled"
        assert 0 < len(answer.token_ids) < 10
        assert answer.text
        handle.cancel()
        assert handle.result() is answer

    def test_cancel_before_the_first_step(self, begun):
        ensemble, more = begun
        handle = ensemble.submit(PROMPT, **ENDLESS)
        handle.cancel()
        more()
        answer = handle.result(timeout=30)
        assert answer.finish_reason == "cancelled"
        assert len(answer.token_ids) < 3

    def test_a_dropped_handle(self, begun):
        ensemble, more = begun
        handle = ensemble.submit(PROMPT, **ENDLESS)
        more(3)
        next(handle)
        del handle
        more()

    @pytest.mark.parametrize("ending", ["close", "drop", "raise"])
    def test_a_stream(self, begun, ending):
        ensemble, more = begun
        more(3)
        stream = ensemble.stream(PROMPT, **ENDLESS)
        next(stream)
        if ending == "close":
            stream.close()
        elif ending == "drop":
            del stream
        else:
            with pytest.raises(ZeroDivisionError):
                stream.throw(ZeroDivisionError())
        more()

    def test_a_stream_that_never_begins_costs_nothing(self, begun):
        ensemble, _ = begun
        stream = ensemble.stream(PROMPT, **ENDLESS)
        assert ensemble._scheduler._thread is None
        stream.close()

    @pytest.mark.parametrize("ending", ["aclose", "cancel", "break", "wait_for"])
    def test_an_asynchronous_stream(self, begun, ending):
        ensemble, more = begun
        more(3)

        async def read(stream):
            async for _ in stream:
                if ending == "break":
                    break

        async def ask():
            stream = ensemble.astream(PROMPT, **ENDLESS)
            if ending == "aclose":
                await anext(stream)
                await stream.aclose()
            elif ending == "cancel":
                task = asyncio.ensure_future(read(stream))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif ending == "wait_for":
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(read(stream), 0.05)
            else:
                await read(stream)
            del stream
            gc.collect()
            await asyncio.sleep(0)
            more()

        asyncio.run(ask())

    def test_a_cancelled_task(self, begun):
        ensemble, more = begun

        async def ask():
            task = asyncio.ensure_future(ensemble.agenerate([PROMPT, "Once"], **ENDLESS))
            more(3)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            more()

        asyncio.run(ask())

    def test_a_closed_loop(self, begun):
        """Whoever waited there is gone; the worker goes on."""
        ensemble, more = begun
        loop = asyncio.new_event_loop()
        handle = loop.run_until_complete(ensemble.asubmit(PROMPT, **ENDLESS))
        task = loop.create_task(handle.__anext__())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        more(4)
        assert handle.result(timeout=30).finish_reason == "cancelled"
        task._log_destroy_pending = False

    def test_an_interrupted_wait(self, begun, monkeypatch):
        ensemble, more = begun

        def interrupted(*_):
            raise KeyboardInterrupt

        more(2)
        with monkeypatch.context() as patch:
            patch.setattr("deepen_core.mailbox.Mailbox.wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ensemble.generate(PROMPT, **ENDLESS)
        more()


class TestDeadlines:
    def test_in_the_queue(self, load):
        with load("alpha", "beta", max_batch_size=1) as ensemble:
            running = ensemble.submit(PROMPT, **ENDLESS)
            waiting = ensemble.submit("Once", timeout=0.01)
            answer = waiting.result()
            assert (answer.finish_reason, answer.text, answer.token_ids) == ("timeout", "", [])
            assert not running.done
            assert len(running.result().token_ids) == ENDLESS["max_new_tokens"]

    def test_under_way(self, held):
        ensemble, member = held
        handle = ensemble.submit(PROMPT, timeout=3600, **ENDLESS)
        member.permits.release(4)
        eventually(lambda: len(member.forwards) == 4)
        handle._request.row.submitted -= 3600
        member.permits.release(2)
        answer = handle.result(timeout=30)
        assert answer.finish_reason == "timeout"
        assert 3 <= len(answer.token_ids) <= 6
        assert answer.text

    def test_waiting_for_a_result_is_no_deadline(self, held):
        ensemble, member = held
        handle = ensemble.submit(PROMPT, **OPTIONS)
        with pytest.raises(NotDoneError, match=r"not there after 0\.01 s\. The request goes on") as caught:
            handle.result(timeout=0.01)
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, DeepenError)
        member.permits.release(100)
        assert len(handle.result().token_ids) == 12

    @pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
    def test_none_at_all(self, ensemble, timeout, workers):
        with pytest.raises(SamplingError, match=r"Option 'timeout' is .*give more than 0 seconds, or None"):
            ensemble.submit(PROMPT, timeout=timeout)
        assert workers() == set()


class TestMistakes:
    @pytest.mark.parametrize(
        ("prompt", "options", "error"),
        [
            (" dog" * 300, {}, ContextWindowError),
            (5, {}, PromptError),
            ([PROMPT, "\ud800"], {}, PromptError),
            (PROMPT, {"max_token": 3}, SamplingError),
            (PROMPT, {"on_member_error": "ignore"}, SamplingError),
        ],
    )
    def test_are_told_by_the_call_itself(self, ensemble, prompt, options, error):
        other = ensemble.submit("Once", **OPTIONS)
        ways = [ensemble.generate, lambda p, **o: asyncio.run(ensemble.agenerate(p, **o))]
        if not isinstance(prompt, list):
            ways += [ensemble.submit, ensemble.stream, lambda p, **o: asyncio.run(ensemble.asubmit(p, **o))]
        for way in ways:
            with pytest.raises(error):
                way(prompt, **options)
        assert len(other.result().token_ids) == 12

    @pytest.mark.parametrize("way", ["stream", "submit", "astream", "asubmit"])
    def test_one_prompt_at_a_time(self, ensemble, way):
        def ask():
            asked = getattr(ensemble, way)(["a", "b"])
            asyncio.run(asked)

        with pytest.raises(PromptError, match=f"{way} takes one prompt"):
            ask()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_batch_size": 0}, "'max_batch_size' is 0: Input should be greater than or equal to 1"),
            ({"max_batch_size": 2.5}, "'max_batch_size' is 2.5"),
            ({"max_batch_size": True}, "'max_batch_size' is True"),
            ({"on_member_error": "ignore"}, "'on_member_error' is 'ignore': Input should be 'raise' or 'drop'"),
        ],
    )
    def test_wrong_ways_to_serve(self, load, options, message):
        with pytest.raises(ConfigurationError, match=message):
            load("alpha", "beta", **options)


class TestLife:
    def test_the_worker_comes_with_the_first_request_and_goes_with_close(self, load, workers):
        ensemble = load("alpha", "beta")
        assert workers() == set()
        ensemble.generate(PROMPT, **OPTIONS)
        assert len(workers()) == 1
        ensemble.close()
        ensemble.close()
        assert workers() == set()
        with pytest.raises(ClosedError, match="load it again"):
            ensemble.submit(PROMPT)
        with pytest.raises(ClosedError):
            asyncio.run(ensemble.agenerate(PROMPT))

    def test_an_idle_worker_sleeps(self, load):
        with load("alpha", "beta") as ensemble:
            ensemble.generate(PROMPT, **OPTIONS)
            ensemble._scheduler.call(time.thread_time).result()
            busy = ensemble._scheduler.call(time.thread_time).result()
            time.sleep(0.3)
            assert ensemble._scheduler.call(time.thread_time).result() - busy < 0.01

    @pytest.mark.parametrize("waiting", [1, 6])
    def test_close_ends_requests(self, load, waiting, workers):
        ensemble = load("alpha", "beta", max_batch_size=2)
        handles = [ensemble.submit(PROMPT, **ENDLESS) for _ in range(waiting)]
        next(handles[0])
        ensemble.close()
        for handle in handles:
            with pytest.raises(ClosedError, match="load it again"):
                handle.result()
            assert handle.done
        assert workers() == set()

    def test_close_from_another_thread_while_streaming(self, load):
        ensemble = load("alpha", "beta")
        stream = ensemble.stream(PROMPT, **ENDLESS)
        next(stream)
        thread = threading.Thread(target=ensemble.close)
        thread.start()
        with pytest.raises(ClosedError):
            list(stream)
        thread.join()

    def test_close_within_a_stream(self, load):
        ensemble = load("alpha", "beta")
        stream = ensemble.stream(PROMPT, **ENDLESS)
        assert next(stream).text
        ensemble.close()
        with pytest.raises(ClosedError):
            list(stream)

    def test_close_on_the_worker(self, load, workers):
        """As a destructor that happens to run there would."""
        ensemble = load("alpha", "beta")
        ensemble._scheduler.call(ensemble.close).result()
        eventually(lambda: workers() == set())

    def test_close_while_a_task_waits(self, load):
        ensemble = load("alpha", "beta")

        async def ask():
            task = asyncio.ensure_future(ensemble.agenerate(PROMPT, **ENDLESS))
            await asyncio.sleep(0.02)
            ensemble.close()
            with pytest.raises(ClosedError):
                await task

        asyncio.run(ask())

    def test_a_dropped_ensemble_ends_its_worker_and_frees_its_models(self, load, workers):
        ensemble = load("alpha", "beta")
        ensemble.generate(PROMPT, **OPTIONS)
        ensemble._scheduler.call(partial(id, ensemble)).result()
        model = weakref.ref(ensemble._members[0].model)
        del ensemble
        gc.collect()
        eventually(lambda: workers() == set())
        gc.collect()
        assert model() is None

    def test_a_handle_keeps_its_ensemble(self, load, workers):
        handle = load("alpha", "beta").submit(PROMPT, **OPTIONS)
        gc.collect()
        assert len(handle.result().token_ids) == 12
        del handle
        gc.collect()
        eventually(lambda: workers() == set())

    def test_close_frees_the_models(self, load):
        ensemble = load("alpha", "beta")
        handle = ensemble.submit(PROMPT, **OPTIONS)
        handle.result()
        model = weakref.ref(ensemble._members[0].model)
        ensemble.close()
        gc.collect()
        assert model() is None

    def test_a_request_that_comes_while_the_worker_ends_is_told(self, load, monkeypatch):
        ensemble = load("alpha", "beta")
        start = ensemble._scheduler._start

        def start_and_end():
            start()
            ensemble.close()

        monkeypatch.setattr(ensemble._scheduler, "_start", start_and_end)
        with pytest.raises(ClosedError):
            ensemble.generate(PROMPT)

    def test_a_request_that_crosses_close_is_told(self, load, workers):
        """Whatever the moment: nobody waits for ever."""
        for delay in (0.0, 0.0005, 0.001, 0.002, 0.004):
            ensemble = load("alpha", "beta")
            ended = []

            def ask(ensemble=ensemble, ended=ended):
                try:
                    while True:
                        ensemble.generate("Once", max_new_tokens=1)
                except ClosedError:
                    ended.append(True)

            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(delay)
            ensemble.close()
            for thread in threads:
                thread.join(30)
            assert ended == [True] * 3
        assert workers() == set()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_worker_that_breaks_tells_everybody(self, ensemble, monkeypatch):
        def breaks(_):
            raise SystemExit

        monkeypatch.setattr("deepen_core.batch.Batch._admit", breaks)
        handle = ensemble.submit(PROMPT, **OPTIONS)
        with pytest.raises(ClosedError):
            handle.result(timeout=30)
        with pytest.raises(ClosedError):
            ensemble.submit(PROMPT)


SCRIPT = """
import os, sys, threading, asyncio
from deepen_core import Ensemble
from deepen_core.errors import ClosedError
ens = Ensemble.load({folders!r}, progress=False, device="cpu")
options = dict(max_new_tokens=100, ignore_eos=True)
"""

EXITS = {
    "abandoned handle": "handle = ens.submit('The dog', **options); next(handle)",
    "abandoned stream": "stream = ens.stream('The dog', **options); next(stream)",
    "idle worker": "ens.generate('The dog', max_new_tokens=2)",
    "waiting thread": (
        "t = threading.Thread(target=lambda: print(len(ens.generate('The dog', **options).token_ids))); t.start()"
    ),
    "error": "handle = ens.submit('The dog', **options); next(handle); sys.exit(3)",
    "fork": """
handle = ens.submit('The dog', **options)
next(handle)
child = os.fork()
if not child:
    for call in (lambda: ens.generate('a'), lambda: handle.result(), lambda: ens.score('a', 'b')):
        try:
            call()
        except ClosedError as error:
            assert 'fork' in str(error)
        else:
            os._exit(1)
    ens.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert len(handle.result().token_ids) == 100
""",
    "fork before the first request": """
child = os.fork()
if not child:
    os._exit(len(ens.generate('The dog', max_new_tokens=5, ignore_eos=True).token_ids))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
assert len(ens.generate('The dog', **options).token_ids) == 100
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", EXITS)
def test_the_interpreter_exits_in_peace(folders, ending):
    code = SCRIPT.format(folders=[str(folders["alpha"]), str(folders["beta"])]) + EXITS[ending]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, env=dict(os.environ)
    )
    assert run.stderr == ""
    assert run.returncode == (3 if ending == "error" else 0)
    assert run.stdout == ("100\n" if ending == "waiting thread" else "")
