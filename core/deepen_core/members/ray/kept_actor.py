"""Keeps the actor of a member: starts another one when it is gone, and waits for no answer longer than it may."""

from __future__ import annotations

import logging
import time
from typing import Any

from deepen_core.errors import DeepenError, MemberError, MemberTimeoutError, brief
from deepen_core.members.ray.actor import check_same
from deepen_core.members.ray.link import Call, LostActorError, NoReplyError, Starter
from deepen_core.members.ray.messages import Facts

RESTARTS_WITHIN_S = 600.0
"""Seconds within which restarts count, so that one deadly request is not the end."""

_log = logging.getLogger("deepen_core")


class KeptActor:
    """The actor of a member, whichever it is now.

    Args:
        name: The member's name.
        starter: Starts actors.
        max_restarts: How often one is started again within `RESTARTS_WITHIN_S`; -1 for no limit.

    Raises:
        DeepenError: If the first one cannot be started.
    """

    def __init__(self, name: str, starter: Starter, max_restarts: int) -> None:
        self._name = name
        self._starter = starter
        self._max_restarts = max_restarts
        self._actor = starter.start()
        self._overdue: Call | None = None
        self._overdue_since = 0.0
        self._lost: DeepenError | None = None
        self._closed = False
        self._restarted: list[float] = []  # when

    @property
    def facts(self) -> Facts:
        """What the actor says of itself."""
        return self._actor.facts

    @property
    def restarts(self) -> int:
        """Number of times that one was started again."""
        return len(self._restarted)

    def call(self, method: str, *given: object) -> Call:
        """Asks the actor for something without waiting for it."""
        return self._actor.link.call(method, *given)

    def wait(self, call: Call, timeout: float) -> Any:
        """Returns the answer to a call.

        Args:
            call: What was asked for.
            timeout: In seconds.

        Raises:
            MemberTimeoutError: If there is none in time.
            LostActorError: If the actor is gone; see `recover`.
            Exception: What it has raised.
        """
        try:
            return call.result(timeout)
        except NoReplyError:
            self._overdue, self._overdue_since = call, time.monotonic() - timeout
            raise MemberTimeoutError(
                f"Member {self._name!r}, in an actor on {self._actor.facts.place}, has not replied after {timeout:g} s "
                "(step_timeout of its ray options). Until it does, it takes no part in any answer; allow more if its "
                "steps take so long."
            ) from None

    def fault(self) -> MemberError | None:
        """Returns why the actor cannot be asked for anything, if so."""
        if self._closed:
            return MemberError(f"Member {self._name!r} was closed, and its actor ended: load the ensemble again.")
        if self._lost is not None:
            return MemberError(
                f"The actor of member {self._name!r} is gone, and could not be started again: {brief(self._lost)}. "
                "Load the ensemble again."
            )
        if self._overdue is not None and not self._overdue.done():
            return MemberTimeoutError(
                f"Member {self._name!r} is still in a step that began {time.monotonic() - self._overdue_since:.1f} s "
                "ago, more than its step_timeout: ask again later, or load the ensemble again."
            )
        self._overdue = None
        return None

    def check(self) -> None:
        """Raises what `fault` returns.

        Raises:
            MemberError: If there is any.
        """
        fault = self.fault()
        if fault is not None:
            raise fault

    def recover(self, problem: LostActorError, *, again: bool) -> None:
        """Starts another actor in place of one that is gone.

        Args:
            problem: How it was noticed.
            again: Whether the step has already been repeated.

        Raises:
            MemberError: If that is not allowed, or fails.
        """
        self._overdue = None
        self.check()
        if again:
            raise MemberError(f"The actor of member {self._name!r} died twice in one step: {problem}.") from problem
        most, now = self._max_restarts, time.monotonic()
        lately = sum(now - then < RESTARTS_WITHIN_S for then in self._restarted)
        if lately >= most >= 0:
            raise MemberError(
                f"The actor of member {self._name!r} has died {lately + 1} times within {RESTARTS_WITHIN_S:g} s, and "
                f"max_restarts is {most}: it is not started again for now ({problem})."
            ) from problem
        self._restarted.append(now)
        _log.warning("The actor of member %r is gone (%s), and is started again.", self._name, problem)
        self._actor.link.kill()
        try:
            started = self._starter.start()
            check_same(started.facts, self._actor.facts.model, self._name)
        except DeepenError as failure:
            self._lost = failure
            raise MemberError(f"{self.fault()}") from failure
        self._actor = started
        if self._closed:  # meanwhile
            started.link.kill()
            self.check()

    def close(self) -> None:
        """Ends the actor, and whatever waits for it; further calls do nothing."""
        self._closed = True
        self._actor.link.kill()
        self._starter.close()
