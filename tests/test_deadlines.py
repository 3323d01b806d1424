"""Time limits: of a request from the moment it is made, of a member's step, and of closing; and the queue's length."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from scheduler_parts import OPTIONS, PROMPT, PROMPTS, HookedMember, Serving, eventually, hook

from deepen_core import Ensemble
from deepen_core.config import SamplingParams
from deepen_core.engine.task import Lane
from deepen_core.errors import (
    ClosedError,
    ConfigurationError,
    MemberTimeoutError,
    QueueFullError,
    TimedOutError,
)

LIMIT_S = 0.4


class Hanging:
    """A `fail` hook that hangs once it is told to, until it is let go.

    Attributes:
        hangs: Whether the next call hangs.
        go: Lets it go.
    """

    def __init__(self):
        self.hangs = False
        self.go = threading.Event()

    def __call__(self, _sequences):
        if self.hangs:
            self.hangs = False
            assert self.go.wait(60), "a test has left a member hanging"


@pytest.fixture
def timed(load):
    """Makes an ensemble of which a member can hang, and what makes it hang."""
    opened = []

    def make(number, **options):
        members = list(load("alpha", "beta")._opened().members)
        members[number] = hooked = HookedMember(members[number])
        hooked.fail = Hanging()
        ensemble = Ensemble.from_members(members, **{"step_timeout": LIMIT_S, "weights": "static", **options})
        opened.append((ensemble, hooked.fail))
        ensemble.generate([PROMPT] * 3, **OPTIONS)  # the first steps are not limited
        return ensemble, hooked.fail

    yield make
    for ensemble, hanging in opened:
        hanging.go.set()
        ensemble.close()


class TestAMemberThatHangs:
    def test_the_others_go_on_without_it_until_it_returns(self, timed):
        ensemble, hanging = timed(1, on_member_error="drop")
        expected = ensemble.generate(list(PROMPTS), **OPTIONS)
        hanging.hangs, started = True, time.monotonic()
        answers = ensemble.generate(list(PROMPTS), **OPTIONS)
        assert time.monotonic() - started < 20 * LIMIT_S
        assert [answer.finish_reason for answer in answers] == ["length"] * len(PROMPTS)
        assert all("'beta' failed and was dropped from token" in answer.warnings[-1] for answer in answers)
        again = ensemble.generate(PROMPT, **OPTIONS)
        assert "is still in a step that began" in again.warnings[-1]
        hanging.go.set()
        eventually(lambda: not ensemble.generate(PROMPT, max_new_tokens=1).warnings)
        assert [answer.token_ids for answer in ensemble.generate(list(PROMPTS), **OPTIONS)] == [
            answer.token_ids for answer in expected
        ]

    def test_one_that_hangs_while_a_prompt_is_read_to_weigh_it(self, timed):
        ensemble, hanging = timed(1, on_member_error="drop", weights="context")
        unread = "Where the boats are"
        expected = ensemble.generate([*PROMPTS, unread], **OPTIONS)
        for forward in ensemble._engine.decoder._runners.each:
            forward._likelihoods.clear()  # of prompts that were read
        hanging.hangs, started = True, time.monotonic()
        answers = ensemble.generate([unread, *PROMPTS], **OPTIONS)
        assert time.monotonic() - started < 20 * LIMIT_S
        assert [answer.finish_reason for answer in answers] == ["length"] * len(answers)
        assert "'beta' failed and was dropped from token 1 of the answer" in answers[0].warnings[-1]
        hanging.go.set()
        eventually(lambda: not ensemble.generate(PROMPT, max_new_tokens=1).warnings)
        again = ensemble.generate([*PROMPTS, unread], **OPTIONS)
        assert [answer.token_ids for answer in again] == [answer.token_ids for answer in expected]

    @pytest.mark.parametrize("number", [0, 1])
    def test_requests_that_cannot_go_on_without_it_say_so(self, timed, number):
        ensemble, hanging = timed(number)
        expected = ensemble.generate(PROMPT, **OPTIONS).token_ids
        hanging.hangs = True
        way_out = "It is the main member" if number == 0 else "With on_member_error='drop' requests continue"
        with pytest.raises(MemberTimeoutError, match=rf"has not ended a step after 0.4 s \(step_timeout\).*{way_out}"):
            ensemble.generate(PROMPT, **OPTIONS)
        with pytest.raises(MemberTimeoutError, match="is still in a step"):
            ensemble.score("The", " dog")
        if number:
            assert ensemble.generate(PROMPT, on_member_error="drop", **OPTIONS).finish_reason == "length"
        hanging.go.set()

        def is_back():
            try:
                return ensemble.generate(PROMPT, on_member_error="drop", **OPTIONS).token_ids == expected
            except MemberTimeoutError:  # it takes a moment to return
                return False

        eventually(is_back)

    def test_first_steps_may_take_longer(self, load):
        members = list(load("alpha", "beta")._opened().members)
        members[1] = slow = HookedMember(members[1])
        slow.fail = lambda _: time.sleep(0.1)
        with Ensemble.from_members(members, step_timeout=0.05) as ensemble:
            assert ensemble.generate(PROMPT, max_new_tokens=1).finish_reason
            with pytest.raises(MemberTimeoutError):
                ensemble.generate(PROMPT, **OPTIONS)

    def test_steps_in_time_change_nothing(self, load, pair):
        texts = list(PROMPTS)
        with load("alpha", "beta", step_timeout=60) as ensemble:
            assert [a.token_ids for a in ensemble.generate(texts, **OPTIONS)] == [
                a.token_ids for a in pair.generate(texts, **OPTIONS)
            ]
            assert ensemble.score("The", " dog") == pair.score("The", " dog")
            assert ensemble.info == pair.info

    @pytest.mark.parametrize("wrong", [0, -1, float("inf"), "soon"])
    def test_the_limit_is_a_time(self, load, wrong):
        with pytest.raises(ConfigurationError, match="'step_timeout' is"):
            load("alpha", step_timeout=wrong)


class TestClosing(Serving):
    def test_it_does_not_wait_for_a_member_that_hangs(self, ensemble, monkeypatch, caplog):
        monkeypatch.setattr("deepen_core.engine.worker.CLOSE_S", 0.3)
        hanging = hook(ensemble).fail = Hanging()
        hanging.hangs = True
        handles = [ensemble.submit(PROMPT, **OPTIONS)]
        eventually(lambda: not hanging.hangs)
        handles += [ensemble.submit(PROMPT, **OPTIONS) for _ in range(3)]
        task = ensemble._worker.call(lambda: 1)
        started = time.monotonic()
        ensemble.close()
        assert time.monotonic() - started < 10
        assert "is left behind" in caplog.text
        for waits in (*(handle.result for handle in handles), task.result):
            with pytest.raises(ClosedError):
                waits(timeout=10)
        hanging.go.set()

    def test_nor_for_a_task_that_does(self, ensemble, workers, monkeypatch):
        monkeypatch.setattr("deepen_core.engine.worker.CLOSE_S", 0.3)
        go = threading.Event()
        task = ensemble._worker.call(lambda: go.wait(60))
        eventually(task.running)
        ensemble.close()
        with pytest.raises(ClosedError):
            task.result(timeout=10)
        go.set()
        eventually(lambda: not workers())

    def test_the_interpreter_exits_while_a_member_hangs(self, folders):
        code = f"""
import threading
from deepen_core import Ensemble
import deepen_core.engine.worker as worker
worker.CLOSE_S = 0.5
ens = Ensemble.load([{str(folders["alpha"])!r}], progress=False, device="cpu")
ens.generate("The dog", max_new_tokens=2)
hung = threading.Event()
ens._engine.decoder._runners.each[0].member.next_logits = lambda sequences: (hung.set(), threading.Event().wait())
handle = ens.submit("The dog", max_new_tokens=2)
hung.wait(60)
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
        assert run.returncode == 0, run.stderr


class TestTheQueue(Serving):
    @pytest.fixture
    def ensemble(self, load):
        with load("alpha", "beta", max_batch_size=2, max_waiting=3) as ensemble:
            yield ensemble

    def test_it_has_a_limit(self, held):
        ensemble, member = held
        handles = [ensemble.submit(PROMPT, **OPTIONS) for _ in range(5)]
        said = r"5 requests are decoded or wait, and at most 2 \(max_batch_size\) and 3 \(max_waiting\) may"

        async def asynchronous():
            for ask in (ensemble.agenerate, ensemble.asubmit):
                with pytest.raises(QueueFullError, match=said):
                    await ask(PROMPT)
            with pytest.raises(QueueFullError, match=said):
                await anext(ensemble.astream(PROMPT))

        for ask in (ensemble.submit, ensemble.generate, ensemble.stream, ensemble.vote):
            with pytest.raises(QueueFullError, match=said):
                ask(PROMPT)
        asyncio.run(asynchronous())
        member.permits.release(10_000)
        assert all(handle.result(timeout=60).finish_reason == "length" for handle in handles)
        assert ensemble.generate(PROMPT, **OPTIONS).finish_reason == "length"

    def test_a_list_is_taken_on_as_a_whole(self, ensemble):
        assert len(ensemble.generate([PROMPT] * 20, **OPTIONS)) == 20
        assert len(asyncio.run(ensemble.agenerate([PROMPT] * 20, **OPTIONS))) == 20

    def test_there_may_be_no_limit(self, load):
        with load("alpha", max_batch_size=1, max_waiting=None) as ensemble:
            handles = [ensemble.submit(PROMPT, max_new_tokens=1) for _ in range(50)]
            assert all(handle.result(timeout=60).finish_reason for handle in handles)


class TestTimeoutsCount:
    """What takes time before decoding."""

    @pytest.fixture
    def slow(self, pair, monkeypatch):
        """The ensemble, whose preparation of each request takes a while, or until a test ends."""
        go, create = threading.Event(), pair._opened().decoder.factory.create

        def slowly(*arguments):
            go.wait(slow.seconds)
            return create(*arguments)

        slow = Slow(pair, 0.3)
        monkeypatch.setattr(pair._opened().decoder.factory, "create", slowly)
        yield slow
        go.set()

    def test_preparing_in_every_way(self, slow):
        ensemble, options = slow.ensemble, {**OPTIONS, "timeout": 0.1}
        answers = [
            ensemble.generate(PROMPT, **options),
            ensemble.submit(PROMPT, **options).result(),
            list(ensemble.stream(PROMPT, **options))[-1].generation,
        ]
        assert [(answer.finish_reason, answer.token_ids) for answer in answers] == [("timeout", [])] * 3
        with pytest.raises(TimedOutError):
            ensemble.generate(PROMPT, on_timeout="raise", **options)

    def test_nobody_waits_for_a_preparation_that_takes_longer(self, slow):
        slow.seconds = 30.0
        ensemble, options = slow.ensemble, {**OPTIONS, "timeout": 0.1, "logprobs": 0}

        async def ask():
            yield await ensemble.agenerate(PROMPT, **options)
            yield (await ensemble.agenerate([PROMPT, PROMPT], **options))[1]
            yield await (await ensemble.asubmit(PROMPT, **options)).aresult()
            async for chunk in ensemble.astream(PROMPT, **options):
                yield chunk.generation
            with pytest.raises(TimedOutError, match=r"was not prepared after 0\.1 s"):
                await ensemble.agenerate(PROMPT, on_timeout="raise", **options)

        async def all_of_them():
            return [answer async for answer in ask()]

        started = time.monotonic()
        answers = asyncio.run(all_of_them())
        assert time.monotonic() - started < 20
        assert [(a.finish_reason, a.text, a.logprobs) for a in answers] == [("timeout", "", [])] * 4
        assert all(answer.timings.queue_s >= 0.1 for answer in answers)

    def test_a_stream_that_nobody_reads_yet_does_not_time_out(self, pair):
        stream = pair.stream(PROMPT, timeout=5.0, **OPTIONS)
        params = SamplingParams(timeout=5.0).asked_at(time.perf_counter() - 6.0)
        assert pair.generate(PROMPT, params, **OPTIONS).finish_reason == "timeout"
        time.sleep(0.2)
        assert list(stream)[-1].finish_reason == "length"


class Slow:
    def __init__(self, ensemble, seconds):
        self.ensemble = ensemble
        self.seconds = seconds


class TestALane:
    def test_work_is_run_in_order_and_fails_alone(self):
        lane, done = Lane(1, "test-lane"), []
        tasks = [lane.run(lambda n=n: done.append(n)) for n in range(5)]
        wrong = lane.run(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            wrong.result(timeout=10)
        assert [task.result(timeout=10) for task in tasks] == [None] * 5
        assert done == [*range(5)]
        lane.close(10)
        with pytest.raises(RuntimeError):
            lane.run(print)

    def test_its_threads_end_with_it(self):
        lane = Lane(2, "test-dropped-lane")
        lane.run(lambda: None).result(timeout=10)
        del lane
        eventually(lambda: not [t for t in threading.enumerate() if t.name == "test-dropped-lane"])

    def test_what_is_cancelled_is_not_run(self):
        lane, go, ran = Lane(1, "test-lane"), threading.Event(), []
        first, second = lane.run(lambda: go.wait(60)), lane.run(lambda: ran.append(1))
        assert second.cancel()
        go.set()
        first.result(timeout=10)
        lane.close(10)
        assert ran == []
