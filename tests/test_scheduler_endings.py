"""Requests that end early: broken off, cancelled, dropped, out of time."""

import asyncio
import gc

import pytest
from scheduler_parts import ENDLESS, OPTIONS, PROMPT, Serving, eventually, sequences_held

from deepen_core.errors import (
    DeepenError,
    NotDoneError,
    SamplingError,
)


class TestBreakingOff(Serving):
    """Each leaves the worker idle after two more steps; a third would wait for a permit that does not come."""

    @pytest.fixture
    def begun(self, held):
        ensemble, member = held

        def more(steps=2):
            member.permits.release(steps)

        yield ensemble, more
        eventually(lambda: sequences_held(ensemble) == 0)
        assert ensemble._worker._scheduler.idle

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
        assert ensemble._worker._thread is None
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
            patch.setattr("deepen_core.engine.output_queue.OutputQueue.wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ensemble.generate(PROMPT, **ENDLESS)
        more()


class TestDeadlines(Serving):
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
        handle._request.sequence.submitted -= 3600
        member.permits.release(2)
        answer = handle.result(timeout=30)
        assert answer.finish_reason == "timeout"
        assert 3 <= len(answer.token_ids) <= 6
        assert answer.text

    def test_waiting_for_a_result_is_no_deadline(self, held):
        ensemble, member = held
        handle = ensemble.submit(PROMPT, **OPTIONS)
        with pytest.raises(NotDoneError, match=r"not complete after 0\.01 s\. The request continues") as caught:
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
