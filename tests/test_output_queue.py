"""The output of requests on its way to the tasks that wait for it: who is woken, when, and by how many calls."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from deepen_core.engine.handle import Handle
from deepen_core.engine.merged import MergedOutput
from deepen_core.engine.output_queue import OutputQueue, Wakeups
from deepen_core.errors import DecodingError
from deepen_core.results import Chunk, Generation, Usage

WHOLE = Generation("abc", [1, 2, 3], "stop", Usage(2, 3))
LAST = Chunk("", [], "stop", WHOLE)
TASKS = 64


@pytest.fixture
def calls(monkeypatch):
    """The calls to an event loop from other threads."""
    made = []
    real = asyncio.BaseEventLoop.call_soon_threadsafe

    def counted(loop, callback, *arguments, **options):
        made.append(loop)
        return real(loop, callback, *arguments, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon_threadsafe", counted)
    return made


def put(queues, chunk):
    """What a decoding step does."""
    with Wakeups() as wakeups:
        for queue in queues:
            queue.put(chunk, wakeups)


async def piece_of(queue):
    await queue.sleep(queue.has_news)
    return queue.take().text


async def waiting(queues, ask):
    """Tasks that wait for what is asked of each queue."""
    tasks = [asyncio.ensure_future(ask(queue)) for queue in queues]
    await asyncio.sleep(0)
    assert all(queue._sleepers for queue in queues)
    return tasks


class TestWakeups:
    async def test_a_step_reaches_all_streams_by_one_call(self, calls):
        queues = [OutputQueue() for _ in range(TASKS)]
        tasks = await waiting(queues, piece_of)
        thread = threading.Thread(target=put, args=(queues, Chunk("a")))
        thread.start()
        assert await asyncio.wait_for(asyncio.gather(*tasks), 30) == ["a"] * TASKS
        thread.join()
        assert calls == [asyncio.get_running_loop()]
        assert not any(queue._sleepers for queue in queues)

    def test_each_loop_is_called_once(self, calls):
        queues, asleep, heard = [OutputQueue() for _ in range(6)], threading.Barrier(3), []

        async def listen(its):
            tasks = await waiting(its, piece_of)
            asleep.wait(30)
            heard.extend(await asyncio.wait_for(asyncio.gather(*tasks), 30))

        threads = [threading.Thread(target=asyncio.run, args=(listen(its),)) for its in (queues[:3], queues[3:])]
        for thread in threads:
            thread.start()
        asleep.wait(30)
        before = len(calls)
        put(queues, Chunk("a"))
        assert len(calls) == before + 2
        assert len({*calls[before:]}) == 2
        for thread in threads:
            thread.join()
        assert heard == ["a"] * 6

    async def test_a_task_that_waits_for_the_end_is_not_woken_by_pieces(self, calls):
        queue = OutputQueue()
        (task,) = await waiting([queue], lambda queue: queue.sleep(queue.ended))
        put([queue], Chunk("a"))
        put([queue], Chunk("b"))
        assert calls == []
        put([queue], LAST)
        await asyncio.wait_for(task, 30)
        assert len(calls) == 1

    async def test_what_fails_in_the_middle_of_a_step_wakes_those_before_it(self):
        queue = OutputQueue()
        (task,) = await waiting([queue], piece_of)
        failing = OutputQueue()
        failing._chunks = None
        with pytest.raises(TypeError):
            put([queue, failing], Chunk("a"))
        assert await asyncio.wait_for(task, 30) == "a"

    @pytest.mark.parametrize("asks", ["has_news", "ended"])
    def test_a_loop_that_was_closed_is_noticed_at_the_next_piece(self, asks):
        queue, loop = OutputQueue(), asyncio.new_event_loop()
        task = loop.create_task(queue.sleep(getattr(queue, asks)))
        loop.run_until_complete(asyncio.sleep(0))
        assert not queue.abandoned
        loop.close()
        put([queue], Chunk("a"))
        assert queue.abandoned
        task._log_destroy_pending = False

    async def test_a_cancelled_task_leaves_nothing_behind(self):
        queues = [OutputQueue(), OutputQueue()]
        (task,) = await waiting(queues[:1], piece_of)
        reading = asyncio.ensure_future(anext(MergedOutput(queues)))
        await asyncio.sleep(0)
        task.cancel()
        reading.cancel()
        await asyncio.wait([task, reading])
        assert not any(queue._sleepers for queue in queues)

    async def test_several_readers_of_one_answer_share_its_pieces(self):
        queue = OutputQueue()

        handle = Handle(SimpleNamespace(mail=queue), None)

        async def read():
            return [chunk.text async for chunk in handle]

        tasks = [asyncio.ensure_future(read()) for _ in range(3)]
        for text in "abcdef":
            put([queue], Chunk(text))
            await asyncio.sleep(0)
        put([queue], LAST)
        found = await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert sorted(text for texts in found for text in texts if text) == [*"abcdef"]


class TestMerged:
    async def test_the_pieces_of_a_step_come_together(self):
        queues = [OutputQueue() for _ in range(3)]

        async def read():
            return [[(number, chunk.text) for number, chunk in step] async for step in MergedOutput(queues)]

        task = asyncio.ensure_future(read())
        for its, chunk in ((queues, Chunk("a")), (queues[1:], Chunk("b")), (queues[:1], LAST), (queues[1:], LAST)):
            await asyncio.sleep(0)
            put(its, chunk)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert await asyncio.wait_for(task, 30) == [
            [(0, "a"), (1, "a"), (2, "a")],
            [(1, "b"), (2, "b")],
            [(0, "")],
            [(1, ""), (2, "")],
        ]

    async def test_an_error_comes_after_the_pieces_before_it(self):
        queues, seen = [OutputQueue(), OutputQueue()], []
        put(queues, Chunk("a"))
        queues[0].fail(DecodingError("no luck"))
        put(queues[1:], Chunk("b"))

        async def read():
            async for step in MergedOutput(queues):
                seen.extend((number, chunk.text) for number, chunk in step)

        with pytest.raises(DecodingError, match="no luck"):
            await read()
        assert sorted(seen) == [(0, "a"), (1, "ab")]

    @pytest.mark.parametrize("ending", ["answer", "error"])
    async def test_pieces_within_the_interval_wait_for_the_end(self, ending, calls):
        queues, seen = [OutputQueue(), OutputQueue()], []

        async def read():
            async for step in MergedOutput(queues, lambda: 3600.0):
                seen.append([(number, chunk.text) for number, chunk in step])  # noqa: PERF401 (kept if it raises)

        task = asyncio.ensure_future(read())
        for text in "abc":
            await asyncio.sleep(0)
            put(queues, Chunk(text))
            await asyncio.sleep(0.01)
        assert (seen, len(calls)) == ([[(0, "a"), (1, "a")]], 1)
        if ending == "answer":
            put(queues, LAST)
            await asyncio.wait_for(task, 30)
        else:
            queues[0].fail(DecodingError("no luck"))
            with pytest.raises(DecodingError, match="no luck"):
                await asyncio.wait_for(task, 30)
        assert "".join(text for step in seen for number, text in step if number == 0) == "abc"
        assert len(calls) == 2

    async def test_pieces_after_the_interval_bring_those_within_it(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("time.perf_counter", lambda: now[0])
        queue, reading = OutputQueue(), []
        output = MergedOutput([queue], lambda: 0.05)

        async def step():
            return "".join(chunk.text for _, chunk in await output.__anext__())

        for seconds, text, comes in ((0, "a", "a"), (0.03, "b", None), (0.01, "c", None), (0.02, "d", "bcd")):
            now[0] += seconds
            reading = reading or [asyncio.ensure_future(step())]
            await asyncio.sleep(0)
            put([queue], Chunk(text))
            for _ in range(3):
                await asyncio.sleep(0)
            assert reading[0].done() == (comes is not None)
            if comes:
                assert reading.pop().result() == comes
