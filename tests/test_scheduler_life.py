"""The worker's life: when it comes and goes, and what is left behind."""

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
from scheduler_parts import ENDLESS, OPTIONS, PROMPT, Serving, eventually, hook

from deepen_core.errors import (
    ClosedError,
    CrashedError,
)


class TestLife(Serving):
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
            ensemble._worker.call(time.thread_time).result()
            busy = ensemble._worker.call(time.thread_time).result()
            time.sleep(0.3)
            assert ensemble._worker.call(time.thread_time).result() - busy < 0.01

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
        ensemble._worker.call(ensemble.close).result()
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
        ensemble._worker.call(partial(id, ensemble)).result()
        model = weakref.ref(ensemble._engine.members[0].model)
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
        model = weakref.ref(ensemble._engine.members[0].model)
        ensemble.close()
        gc.collect()
        assert model() is None

    def test_a_request_that_comes_while_the_worker_ends_is_told(self, load, monkeypatch):
        ensemble = load("alpha", "beta")
        start = ensemble._worker._start

        def start_and_end():
            start()
            ensemble.close()

        monkeypatch.setattr(ensemble._worker, "_start", start_and_end)
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

    def test_a_worker_that_breaks_tells_everybody(self, ensemble, monkeypatch):
        """It begins anew three times a minute; after the fourth crash every call raises."""
        problem = SystemExit("the end")

        def breaks(_):
            raise problem

        monkeypatch.setattr("deepen_core.engine.scheduler.Scheduler._admit", breaks)
        said = r"has crashed: SystemExit: the end\. This is a bug in deepen"
        for way_out in (*["Ask again"] * 3, "the crash number 4 within a minute: load it again"):
            handle = ensemble.submit(PROMPT, **OPTIONS)
            with pytest.raises(ClosedError, match=f"{said}.*{way_out}") as failed:
                handle.result(timeout=30)
            assert isinstance(failed.value, CrashedError)
            assert failed.value.__cause__ is problem
        with pytest.raises(ClosedError, match=said) as failed:
            ensemble.submit(PROMPT)
        assert failed.value.__cause__ is problem

    @pytest.mark.parametrize("place", ["engine.scheduler.Scheduler._prefill", "engine.member_runner.MemberRunner.run"])
    def test_after_a_crash_the_next_request_is_answered_as_before(self, load, monkeypatch, place):
        with load("alpha", "beta") as ensemble:
            right = ensemble.generate(PROMPT, **OPTIONS).token_ids
            monkeypatch.setattr(f"deepen_core.{place}", crashes := Crash())
            handles = [ensemble.submit(PROMPT, **OPTIONS) for _ in range(3)]
            for handle in handles:
                with pytest.raises(CrashedError, match="MemoryError: no more"):
                    handle.result(timeout=30)
            assert crashes.count
            monkeypatch.undo()
            assert ensemble.generate(PROMPT, **OPTIONS).token_ids == right

    def test_a_crash_in_the_middle_of_a_forward_leaves_nothing_behind(self, load):
        """What half of a forward wrote is not used; a text that is being scored is read anew."""
        with load("alpha", "beta") as ensemble:
            right, score = ensemble.generate(PROMPT, **OPTIONS).token_ids, ensemble.score(PROMPT, " runs away")
            member = hook(ensemble, 1)._member
            layer = member.model.get_decoder().layers[-1].mlp
            for forwards in (0, 3):
                crash = Crash()
                crash.after = forwards
                held = layer.register_forward_pre_hook(crash)
                with pytest.raises(CrashedError, match="OutsideError"):
                    ensemble.generate(PROMPT, **OPTIONS)
                held.remove()
                cache = member._found.short.cache
                assert not cache.slots
                assert not cache.layers
                assert ensemble.generate(PROMPT, **OPTIONS).token_ids == right
                assert ensemble.score(PROMPT, " runs away") == score


class Crash:
    """Not an error of any request."""

    count = 0
    after = 0

    def __call__(self, *_):
        self.count += 1
        if self.count <= self.after:
            return
        raise OutsideError("MemoryError: no more")


class OutsideError(BaseException):
    pass


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
