"""A member whose steps may take so long and no longer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDoneInTimeError
from functools import partial
from typing import Any, TypeVar, cast

import torch

from deepen_core.engine.task import Lane
from deepen_core.errors import MemberTimeoutError
from deepen_core.members.base import Member, TreeRun, prompt_logprobs, read_ahead, tree_run_of
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.text_tree import TextTree

T = TypeVar("T")

_log = logging.getLogger("deepen_core")
_FIRST = 3  # calls of each kind that are not limited


class TimedMember:
    """Runs a member's steps on a thread of their own, and leaves the thread when a step takes too long.

    Code that hangs cannot be interrupted. Until it returns, every call raises at once, since a model must not run on
    two threads at a time; then the member is used again. What the step leaves in the caches of its sequences is lost:
    they end, or continue without the member.

    Args:
        member: The member; whatever is not a step is asked of it directly.
        limit_s: Maximum number of seconds for a step, other than the first of each kind.
    """

    def __init__(self, member: Member, limit_s: float) -> None:
        self._member = member
        self._limit_s = limit_s
        self._lane = Lane(1, f"deepen-step-{member.name}")
        self._calls: dict[str, int] = {}
        self._overdue: Future[Any] | None = None
        self._overdue_since = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`.

        Raises:
            MemberTimeoutError: If it takes too long; as from the methods below.
        """
        return self.step("next_logits", partial(self._member.next_logits, sequences), sequences)

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """See `Member.prefill`."""
        return self.step("prefill", partial(self._member.prefill, sequence, limit), [sequence])

    def read_ahead(self, sequence: MemberSequence, start: int) -> list[float] | None:
        """See `ReadsAhead.read_ahead`."""
        return self.step("read_ahead", partial(read_ahead, self._member, sequence, start), [sequence])

    def prompt_logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """See `ReadsAhead.prompt_logprobs`."""
        return self.step("prompt_logprobs", partial(prompt_logprobs, self._member, ids, start))

    def token_logprobs(self, ids: Sequence[int], start: int, source: Sequence[int] | None = None) -> list[float]:
        """See `Member.token_logprobs`."""
        return self.step("token_logprobs", partial(self._member.token_logprobs, ids, start, source))

    def tree_run(self, longest: int) -> TreeRun | None:
        """See `RunsTrees.tree_run`."""
        run = self.step("tree_run", partial(tree_run_of, self._member, longest))
        return None if run is None else _TimedTreeRun(run, self)

    def step(self, kind: str, work: Callable[[], T], sequences: Sequence[MemberSequence] = ()) -> T:
        """Runs a step within the limit.

        Args:
            kind: The first steps of each kind are not limited.
            work: The step.
            sequences: What it runs.

        Raises:
            MemberTimeoutError: If it takes too long, or an earlier one still does.
        """
        self._check_returned()
        calls = self._calls[kind] = self._calls.get(kind, 0) + 1
        started = time.monotonic()
        step = self._lane.run(partial(_step, work))
        try:
            return step.result(None if calls <= _FIRST else self._limit_s)
        except NotDoneInTimeError:
            if step.done():  # just now, or with an error of this kind
                return step.result()
        self._overdue, self._overdue_since = step, started
        # It may still write to the sequences' caches, and even take new ones.
        step.add_done_callback(partial(_returned, self._member.name, started, list(sequences)))
        raise MemberTimeoutError(
            f"Member {self._member.name!r} has not ended a step after {self._limit_s:g} s (step_timeout). Until it "
            "does, it takes no part in any answer; load with a larger step_timeout if its steps take so long."
        )

    def _check_returned(self) -> None:
        if self._overdue is None:
            return
        if self._overdue.done():
            self._overdue = None
            return
        raise MemberTimeoutError(
            f"Member {self._member.name!r} is still in a step that began "
            f"{time.monotonic() - self._overdue_since:.1f} s ago, more than step_timeout ({self._limit_s:g} s): ask "
            "again later, or load the ensemble again."
        )


class _TimedTreeRun:
    """See `TreeRun`."""

    def __init__(self, run: TreeRun, member: TimedMember) -> None:
        self._run = run
        self._member = member

    def run(self, tree: TextTree, stop: int, wanted: Sequence[int]) -> torch.Tensor:
        """See `TreeRun.run`."""
        return self._member.step("tree", partial(self._run.run, tree, stop, wanted))


@torch.inference_mode()  # a setting of the thread
def _step(work: Callable[[], T]) -> T:
    return work()


def _returned(name: str, started: float, sequences: Sequence[MemberSequence], _step: Future[Any]) -> None:
    for sequence in sequences:
        sequence.end()
    _log.warning("Member %r has ended a step after %.1f s, and takes part again.", name, time.monotonic() - started)


def timed_members(members: Sequence[Member], limit_s: float) -> list[Member]:
    """Returns members whose steps are limited.

    Args:
        members: The members.
        limit_s: Maximum number of seconds for a step.
    """
    return [cast("Member", TimedMember(member, limit_s)) for member in members]
