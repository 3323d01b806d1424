"""Actors without Ray: a thread each, which can die, be late, or reply to something else."""

import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDoneInTimeError
from dataclasses import replace
from functools import partial
from queue import SimpleQueue

from deepen_core.config import MemberConfig, RayConfig
from deepen_core.errors import ConfigurationError
from deepen_core.members.loading import describe_member
from deepen_core.members.ray.actor import MemberActor, check_same, digest
from deepen_core.members.ray.link import LoadedActor, LostActorError, NoReplyError
from deepen_core.members.ray.member import RayMember


class ThreadCall:
    def __init__(self):
        self.future = Future()

    def result(self, timeout):
        try:
            return self.future.result(timeout)
        except NotDoneInTimeError:
            raise NoReplyError from None

    def done(self):
        return self.future.done()


class ThreadLink:
    """The way to an actor in a thread of this process.

    Attributes:
        asked: The methods that were called, with what they were given.
        dies: Called with each step; the actor dies in it where this is true.
        late: Seconds by which replies are late.
        spoils: Makes another reply of each.
    """

    def __init__(self, actor):
        self.actor = actor
        self.asked = []
        self.dies = lambda step: False
        self.late = 0.0
        self.spoils = lambda reply: reply
        self.alive = True
        self._calls = []
        self._work = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def call(self, method, *given):
        self.asked.append((method, *given))
        call = ThreadCall()
        if not self.alive:
            call.future.set_exception(LostActorError("it was dead"))
            return call
        self._calls.append(call)
        self._work.put((call, method, given))
        return call

    def kill(self):
        self.alive = False
        self._work.put(None)
        for call in self._calls:
            if not call.done():
                call.future.set_exception(LostActorError("it has died"))

    def steps(self):
        return [given[0] for method, *given in self.asked if method == "run"]

    def _run(self):
        while (item := self._work.get()) is not None:
            call, method, given = item
            if method == "run" and self.dies(given[0]):
                self.kill()
                return
            try:
                found = getattr(self.actor, method)(*given)
                if method == "run":
                    time.sleep(self.late)
                    found = self.spoils(found)
            except Exception as problem:  # noqa: BLE001 (whatever the model raises)
                if not call.done():
                    call.future.set_exception(problem)
            else:
                if not call.done():  # killed meanwhile
                    call.future.set_result(found)


class ThreadStarter:
    """Starts actors in threads.

    Attributes:
        links: To the actors it has started.
        configs: What each of them loads; the last one holds for all that follow.
        fails: Raised in place of starting another one.
    """

    def __init__(self, described, options, *configs):
        self.described = described
        self.options = options
        self.configs = configs
        self.links = []
        self.fails = None
        self.closed = False

    def start(self):
        if self.fails is not None:
            raise self.fails
        actor = MemberActor(1)
        actor.check(self.configs[min(len(self.links), len(self.configs) - 1)], "cpu", None, None)
        facts = actor.load(self.options.top_k)
        check_same(facts, digest(self.described.tokenizer.vocabulary), self.described.name)
        self.links.append(ThreadLink(actor))
        return LoadedActor(self.links[-1], facts)

    def close(self):
        self.closed = True


def far_member(folder, *later, name=None, **options):
    """Returns a member in an actor of this process, and what starts it.

    Args:
        folder: Of the model.
        later: Folders that actors load which are started again.
        name: The member's.
        options: Of `RayConfig`.
    """
    configs = [MemberConfig(model=str(path), name=name or folder.name) for path in (folder, *later)]
    described = describe_member(configs[0], "cpu", None, progress=False)
    given = RayConfig(**{"top_k": None, **options})
    starter = ThreadStarter(described, given, *configs)
    return RayMember(described.name, described.tokenizer, described.context_window, given, starter), starter


def near_member(folder, name=None):
    """Returns the same member in this process."""
    config = MemberConfig(model=str(folder), name=name or folder.name)
    return describe_member(config, "cpu", None, progress=False).load(progress=False)


def other(field, value):
    """Returns what spoils a field of replies."""
    return partial(_changed, field, value)


def _changed(field, value, reply):
    return replace(reply, **{field: value(reply)})


NO_MACHINE = ConfigurationError("no machine has the resources")
