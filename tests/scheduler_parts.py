"""Members that can be watched, held up and made to fail, and a load of mixed callers."""

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deepen_core.errors import MemberError
from deepen_core.members.base import read_ahead

PROMPT = "The quick brown fox"
OPTIONS = {"max_new_tokens": 12, "ignore_eos": True}
ENDLESS = {"max_new_tokens": 100, "ignore_eos": True}
PROMPTS = (
    "The quick brown fox",
    "Once upon",
    "def mean(values):\n    return",
    "你好",
    "Numbers: 1, 22, 333",
    "The dog",
)
FAILING = "Where the boats"  # a prompt whose sequences a hooked member can be told to fail


class HookedMember:
    """A member between the decoder and the real one.

    Attributes:
        forwards: How many sequences each forward had.
        prefills: How many ids each piece of prompt had.
        fail: Called with the sequences of every forward, prefill and reading; may raise.
        spoil: Called with the sequences and their logits; returns other logits.
        permits: If set, every forward takes one and waits for it.
    """

    def __init__(self, member):
        self._member = member
        self.forwards = []
        self.prefills = []
        self.fail = lambda sequences: None
        self.spoil = lambda sequences, logits: logits
        self.permits = None

    def __getattr__(self, name):
        return getattr(self._member, name)

    def next_logits(self, sequences):
        if self.permits is not None:
            assert self.permits.acquire(timeout=60), "a test has left the worker waiting"
        self.forwards.append(len(sequences))
        self.fail(sequences)
        return self.spoil(sequences, self._member.next_logits(sequences))

    def prefill(self, sequence, limit):
        self.fail([sequence])
        self.prefills.append(self._member.prefill(sequence, limit))
        return self.prefills[-1]

    def read_ahead(self, sequence, start):
        self.fail([sequence])
        return read_ahead(self._member, sequence, start)


def hook(ensemble, number=0):
    """Puts a hooked member in the place of one."""
    forward = ensemble._engine.decoder._runners.each[number]
    forward.member = HookedMember(forward.member)
    return forward.member


async def turn_by_turn(member, work):
    """What some work comes to when a hooked member may take a step only after the event loop has turned since the last.

    Work that holds up the loop comes to no end.
    """
    member.permits, given = threading.Semaphore(0), 0
    before, task = len(member.forwards), asyncio.ensure_future(work)
    while not task.done():
        if len(member.forwards) == before + given:
            member.permits.release()
            given += 1
        await asyncio.sleep(0.001)
    member.permits.release(10_000)
    return task.result()


def fails_at(member, prompt, error, *, tokens=0):
    """A `fail` hook for the sequences of one prompt, once so many ids stand behind it."""
    start = member.tokenizer.encode(prompt)[:-2]  # what follows may change the last ids

    def fail(sequences):
        for sequence in sequences:
            place = sequence.prompt_tokens - len(start) - 2
            if (
                sequence.ids[place : place + len(start)] == start
                and len(sequence.ids) >= sequence.prompt_tokens + tokens
            ):
                raise error

    return fail


def sequences_held(ensemble):
    """Sequences that the worker keeps; it must not be in a step that waits."""
    scheduler = ensemble._worker
    return scheduler.call(lambda: scheduler._scheduler.sequences_held).result(timeout=30)


def eventually(condition, seconds=30):
    """Waits for something that another thread brings about."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.002)


def running_workers():
    return {thread for thread in threading.enumerate() if thread.name == "deepen-worker"}


class Serving:
    """What test classes of a running ensemble share."""

    @pytest.fixture(autouse=True)
    def workers(self):
        """The workers that a test has started; other tests' ensembles may have theirs."""
        before = running_workers()
        return lambda: running_workers() - before

    @pytest.fixture
    def ensemble(self, load):
        with load("alpha", "beta", max_batch_size=4) as ensemble:
            yield ensemble

    @pytest.fixture
    def held(self, ensemble):
        """The ensemble whose worker takes a step only when it gets a permit, and the permits."""
        member = hook(ensemble, 0)
        member.permits = threading.Semaphore(0)
        yield ensemble, member
        member.permits.release(10_000)


class MixedLoad:
    """Generations asked for from threads and event loops at once, some cancelled, some failing.

    Args:
        ensemble: Answers.
        options: Of every request.
        cancelled: Share of requests to cancel at a random moment.
        failing: Share of requests with the prompt that fails.
        seed: Of the choices.

    Attributes:
        counts: How many requests ended in which way.
    """

    def __init__(self, ensemble, options, *, cancelled=0.1, failing=0.02, seed=0):
        self.ensemble = ensemble
        self.options = options
        self.expected = {p: ensemble.generate(p, **options) for p in PROMPTS}
        self.cancelled, self.failing = cancelled, failing
        self.seed = seed
        self.counts = {}
        self._lock = threading.Lock()

    def run(self, generations, threads=4, loops=2):
        share = generations // (threads + loops)
        with ThreadPoolExecutor(threads + loops) as pool:
            jobs = [pool.submit(self._thread, self.seed + n, share) for n in range(threads)]
            jobs += [pool.submit(asyncio.run, self._loop(self.seed - n - 1, share)) for n in range(loops)]
            for job in jobs:
                job.result(timeout=600)

    def _plan(self, choices):
        failing = choices.random() < self.failing
        prompt = FAILING if failing else choices.choice(PROMPTS)
        stop_after = choices.randrange(4) if choices.random() < self.cancelled else None
        return prompt, stop_after

    def _thread(self, seed, count):
        choices = random.Random(seed)
        for _ in range(count):
            prompt, stop_after = self._plan(choices)
            try:
                if stop_after is not None:
                    self._check_part(prompt, self._take(self.ensemble.stream(prompt, **self.options), stop_after))
                elif choices.random() < 0.5:
                    self._check(prompt, self.ensemble.generate(prompt, **self.options))
                else:
                    chunks = list(self.ensemble.stream(prompt, **self.options))
                    self._check(prompt, chunks[-1].generation, "".join(c.text for c in chunks))
            except MemberError:
                self._failed(prompt)

    @staticmethod
    def _take(stream, pieces):
        text = "".join(chunk.text for _, chunk in zip(range(pieces), stream, strict=False))
        stream.close()
        return text

    async def _loop(self, seed, count):
        choices = random.Random(seed)
        left = count
        while left > 0:
            together = min(left, choices.randint(1, 6))
            left -= together
            await asyncio.gather(*(self._task(*self._plan(choices)) for _ in range(together)))

    async def _task(self, prompt, stop_after):
        try:
            if stop_after is None:
                self._check(prompt, await self.ensemble.agenerate(prompt, **self.options))
                return
            task = asyncio.ensure_future(self.ensemble.agenerate(prompt, **self.options))
            await asyncio.sleep(0.005 * stop_after)
            task.cancel()
            try:
                self._check(prompt, await task)
            except asyncio.CancelledError:
                self._count("cancelled")
        except MemberError:
            self._failed(prompt)

    def _check(self, prompt, answer, text=None):
        expected = self.expected[prompt]
        assert answer.token_ids == expected.token_ids
        assert answer.text == expected.text == (expected.text if text is None else text)
        self._count("whole")

    def _check_part(self, prompt, text):
        # One that was to fail may have been broken off before it came to that.
        assert self.expected[prompt].text.startswith(text) if prompt != FAILING else text == ""
        self._count("cancelled")

    def _failed(self, prompt):
        assert prompt == FAILING
        self._count("failed")

    def _count(self, what):
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + 1
