"""A member whose model is in an actor: it keeps the texts, and the actor their caches.

1. `begin` sends the new ids of all sequences of a step in one message; `next_logits` waits for the reply.
2. A reply is used only if it is the one to that message, of that actor, for the same lengths of the same sequences.
3. If the actor is gone, another one is started. It knows no sequence, so the step is sent again with all ids.
4. If there is no reply in time, the step fails, and so does every one until the actor has ended it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deepen_core.config.ray import RayConfig
from deepen_core.errors import DeepenError, MemberError, MemberTimeoutError, brief
from deepen_core.members.base import KEPT_TAIL, MemberDescription, MemberSequence, Work
from deepen_core.members.ray.actor import check_same
from deepen_core.members.ray.link import Call, LostActorError, NoReplyError, Starter
from deepen_core.members.ray.messages import Reply, Step, Update, WrongReplyError
from deepen_core.members.text_tree import common_length
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.results import Elsewhere

_log = logging.getLogger("deepen_core")
RESTARTS_WITHIN_S = 600.0
"""Seconds within which restarts count for `RayConfig.max_restarts`, so that one deadly request is not the end."""


class ActorCache:
    """What the actor has of one sequence, as far as this process knows.

    Args:
        key: The sequence's number.
        released: Where the key goes when the sequence ends.
    """

    def __init__(self, key: int, released: deque[int]) -> None:
        self.key = key
        self.ids: list[int] = []
        self._released = released

    def free(self) -> None:
        """See `SequenceCache.free`; the actor is told with the next message."""
        self.ids = []
        self._released.append(self.key)


class _Sent:
    """A message whose reply is awaited.

    Args:
        step: The message.
        call: Gives the reply.
        sequences: The sequences in it, in order.
    """

    def __init__(self, step: Step, call: Call, sequences: Sequence[MemberSequence]) -> None:
        self.step = step
        self.call = call
        self.sequences = list(sequences)
        self._states = {id(sequence): _state(sequence) for sequence in sequences}

    def covers(self, sequences: Sequence[MemberSequence]) -> bool:
        """Whether it asks for all of these sequences as they are now."""
        return all(self._states.get(id(sequence)) == _state(sequence) for sequence in sequences)


class RayMember:
    """A member whose model is in an actor.

    Args:
        name: Its name in reports.
        tokenizer: Its tokenizer, in this process.
        context_window: In its own tokens.
        options: How long it is waited for, and how often it is started again.
        starter: Starts its actors.

    Attributes:
        work: Counts of the work done by all of its actors.
        vocabulary_size: See `Member.vocabulary_size`.
        source_window: Maximum length of a prompt, if an encoder reads it.
        device: See `Member.device`: logits arrive on the CPU, wherever they are computed.
        dtype: See `Member.dtype`.
        batching: See `Member.batching`.

    Raises:
        DeepenError: If the actor cannot be started.
    """

    device = torch.device("cpu")

    def __init__(
        self, name: str, tokenizer: MemberTokenizer, context_window: int, options: RayConfig, starter: Starter
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.context_window = context_window
        self.work = Work()
        self._options = options
        self._starter = starter
        self._actor = starter.start()
        weakref.finalize(self, starter.close)
        facts = self._actor.facts
        self.vocabulary_size = facts.vocabulary_size
        self.source_window = facts.source_window
        self.dtype = facts.dtype
        self.batching = facts.batching
        self._lock = threading.RLock()
        self._keys = itertools.count()
        self._numbers = itertools.count()
        self._released: deque[int] = deque()  # of ended sequences, filled from any thread
        self._begun: _Sent | None = None
        self._overdue: Call | None = None
        self._overdue_since = 0.0
        self._lost: DeepenError | None = None
        self._closed = False
        self._restarts: list[float] = []  # when each was
        self._sent_bytes = self._received_bytes = 0
        self._done_before = (0, 0, 0, 0)  # by actors that are gone
        self._embeddings: torch.Tensor | None = None

    def describe(self) -> MemberDescription:
        """See `Member.describe`."""
        facts, top_k = self._actor.facts, self._options.top_k
        elsewhere = Elsewhere(
            place=facts.place,
            top_k=None if top_k is None or top_k >= self.vocabulary_size else top_k,
            bytes_sent=self._sent_bytes,
            bytes_received=self._received_bytes,
            restarts=len(self._restarts),
        )
        return MemberDescription(facts.architecture, facts.parameters, elsewhere)

    def warm_up(self) -> None:
        """See `Member.warm_up`: the actor has tried the model when it loaded it."""

    def __getattr__(self, name: str) -> Any:
        if name == "embeddings" and self._actor.facts.has_embeddings:
            return self._fetched_embeddings()
        raise AttributeError(name)

    def _fetched_embeddings(self) -> torch.Tensor:
        """Returns the input embeddings [vocabulary, width], which are sent once, when a strategy asks for them."""
        if self._embeddings is None:
            found = self._ask(self._options.load_timeout, "embeddings")
            self._received_bytes += found.nbytes
            self._embeddings = torch.from_numpy(np.array(found))
        return self._embeddings

    def begin(self, sequences: Sequence[MemberSequence]) -> None:
        """See `Begins.begin`."""
        if not self._lock.acquire(blocking=False):
            return  # an earlier step still runs: `next_logits` reports it
        try:
            if self._fault() is None:
                self._begun = self._send(sequences)
        finally:
            self._lock.release()

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`.

        Raises:
            MemberTimeoutError: If there is no reply in time, or an earlier step has not ended yet.
            MemberError: If the actor is gone and cannot be started again, or does not reply to what it is asked.
            Exception: What the model raises in the actor.
        """
        with self._lock:
            sent, self._begun = self._begun, None
            if sent is not None and not sent.covers(sequences):
                self._mistrust(sent.sequences)
                sent = None
            sent, reply = self._replied(sequences, sent)
            logits = dict(zip(map(id, sent.sequences), reply.logits(self.vocabulary_size), strict=True))
            for sequence in sequences:
                sequence.take_pending()
                sequence.keep_logits(logits[id(sequence)])
            return torch.stack([logits[id(sequence)][-1] for sequence in sequences])

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """See `Member.prefill`; raises as `next_logits`."""
        count = max(0, min(limit, sequence.pending - KEPT_TAIL))
        if not count:
            return 0
        with self._lock:
            _, reply = self._replied([sequence], None, ahead=count)
            ((ran, cached),) = reply.ran
            sequence.cached = cached - ran
            if ran:
                sequence.take_pending(ran)
            return ran

    def token_logprobs(self, ids: Sequence[int], start: int, source: Sequence[int] | None = None) -> list[float]:
        """See `Member.token_logprobs`; raises as `next_logits`."""
        given = (list(ids), start, None if source is None else list(source))
        found: list[float] = self._ask(self._options.step_timeout, "token_logprobs", *given)
        return found

    def forget(self) -> None:
        """See `Forgets.forget`; the actor does so before the next step, for which it is sent all ids."""
        self._begun = None
        self._actor.link.call("forget")

    def close(self) -> None:
        """See `Closes.close`: ends the actor, and whatever waits for it."""
        self._closed = True
        self._actor.link.kill()
        self._starter.close()

    def _ask(self, timeout: float, method: str, *given: object) -> Any:
        """Returns the answer to anything but a step."""
        with self._lock:
            self._check()
            for again in (False, True):
                call = self._actor.link.call(method, *given)
                try:
                    return self._wait(call, timeout)
                except LostActorError as problem:
                    self._recover(problem, again=again)
            raise AssertionError("the second attempt returns or raises")

    def _replied(
        self, sequences: Sequence[MemberSequence], sent: _Sent | None, ahead: int | None = None
    ) -> tuple[_Sent, Reply]:
        """Returns the reply to a step, which is sent once more with all ids if the first reply cannot be used.

        Args:
            sequences: The sequences to run.
            sent: The message, if it has been sent.
            ahead: See `Step.ahead`.
        """
        self._check()
        for again in (False, True):
            sent = sent or self._send(sequences, ahead)
            try:
                reply: Reply = self._wait(sent.call, self._options.step_timeout)
                reply.check(sent.step, self._actor.facts.actor, self.vocabulary_size)
            except LostActorError as problem:
                self._mistrust(sent.sequences)
                self._recover(problem, again=again)
            except WrongReplyError as problem:
                self._mistrust(sent.sequences)
                if again:
                    raise MemberError(
                        f"The actor of member {self.name!r} has twice replied to something else than it was asked "
                        f"({problem}): load the ensemble again."
                    ) from problem
            except Exception:
                self._mistrust(sent.sequences)
                raise
            else:
                self._count(reply)
                if not reply.unknown:
                    return sent, reply
                self._mistrust(sent.sequences)
            sent = None
        raise MemberError(f"The actor of member {self.name!r} does not know sequences that it was sent whole.")

    def _send(self, sequences: Sequence[MemberSequence], ahead: int | None = None) -> _Sent:
        updates = [self._update(sequence) for sequence in sequences]
        released = [self._released.popleft() for _ in range(len(self._released))]
        step = Step(next(self._numbers), updates, released, ahead)
        self._sent_bytes += step.size
        return _Sent(step, self._actor.link.call("run", step), sequences)

    def _update(self, sequence: MemberSequence) -> Update:
        """Returns what the actor is told of a sequence, and takes it for told."""
        cache = sequence.cache
        if not isinstance(cache, ActorCache):
            cache = sequence.cache = ActorCache(next(self._keys), self._released)
            sequence.cached = 0
            weakref.finalize(sequence, cache.free).atexit = False
        ids, cached = sequence.ids, min(sequence.cached, len(cache.ids))
        known = cached + common_length(cache.ids[cached:], ids[cached:])
        cache.ids[known:] = ids[known:]
        return Update(
            key=cache.key,
            known=known,
            cached=cached,
            new=np.array(ids[known:], dtype=np.int32),
            settled=sequence.settled,
            places=min(sequence.kept_tail, sequence.pending),
            shares=sequence.shares,
            source=None if known or sequence.source is None else np.array(sequence.source, dtype=np.int32),
        )

    def _mistrust(self, sequences: Sequence[MemberSequence]) -> None:
        """Has the ids of sequences sent and run again: it is not known what the actor has of them."""
        for sequence in sequences:
            if isinstance(sequence.cache, ActorCache):
                sequence.cache.ids = []
            sequence.cached = 0

    def _wait(self, call: Call, timeout: float) -> Any:
        try:
            return call.result(timeout)
        except NoReplyError:
            self._overdue, self._overdue_since = call, time.monotonic() - timeout
            raise MemberTimeoutError(
                f"Member {self.name!r}, in an actor on {self._actor.facts.place}, has not replied after {timeout:g} s "
                "(step_timeout of its ray options). Until it does, it takes no part in any answer; allow more if its "
                "steps take so long."
            ) from None

    def _fault(self) -> MemberError | None:
        """Returns why no message can be sent, if so."""
        if self._closed:
            return MemberError(f"Member {self.name!r} was closed, and its actor ended: load the ensemble again.")
        if self._lost is not None:
            return MemberError(
                f"The actor of member {self.name!r} is gone, and could not be started again: {brief(self._lost)}. "
                "Load the ensemble again."
            )
        if self._overdue is not None and not self._overdue.done():
            return MemberTimeoutError(
                f"Member {self.name!r} is still in a step that began {time.monotonic() - self._overdue_since:.1f} s "
                "ago, more than its step_timeout: ask again later, or load the ensemble again."
            )
        self._overdue = None
        return None

    def _check(self) -> None:
        fault = self._fault()
        if fault is not None:
            raise fault

    def _recover(self, problem: LostActorError, *, again: bool) -> None:
        """Starts another actor in place of one that is gone.

        Args:
            problem: How it was noticed.
            again: Whether the step has already been repeated.

        Raises:
            MemberError: If that is not allowed, or fails.
        """
        self._overdue = None
        self._check()
        if again:
            raise MemberError(f"The actor of member {self.name!r} died twice in one step: {problem}.") from problem
        most, now = self._options.max_restarts, time.monotonic()
        lately = sum(now - then < RESTARTS_WITHIN_S for then in self._restarts)
        if lately >= most >= 0:
            raise MemberError(
                f"The actor of member {self.name!r} has died {lately + 1} times within {RESTARTS_WITHIN_S:g} s, and "
                f"max_restarts is {most}: it is not started again for now ({problem})."
            ) from problem
        self._restarts.append(now)
        _log.warning("The actor of member %r is gone (%s), and is started again.", self.name, problem)
        self._actor.link.kill()
        work = self.work
        self._done_before = (work.forwards, work.ids_run, work.ids_rerun, work.ids_copied)
        try:
            started = self._starter.start()
            check_same(started.facts, self._actor.facts.model, self.name)
        except DeepenError as failure:
            self._lost = failure
            raise MemberError(f"{self._fault()}") from failure
        self._actor = started
        if self._closed:  # meanwhile
            started.link.kill()
            self._check()

    def _count(self, reply: Reply) -> None:
        self._received_bytes += reply.size
        now = [before + done for before, done in zip(self._done_before, reply.work, strict=True)]
        self.work.forwards, self.work.ids_run, self.work.ids_rerun, self.work.ids_copied = now


def _state(sequence: MemberSequence) -> tuple[int, int]:
    """Returns what changes whenever a sequence does."""
    return len(sequence.ids), sequence.cached
