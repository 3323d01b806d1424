"""A member whose model is in an actor: it keeps the texts, and the actor their caches.

1. `begin` sends the new ids of all sequences of a step in one message; `next_logits` waits for the reply.
2. A reply is used only if it is the one to that message, of that actor, for the same lengths of the same sequences.
3. If the actor is gone, another one is started. It knows no sequence, so the step is sent again with all ids.
4. If there is no reply in time, the step fails, and so does every one until the actor has ended it.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deepen_core.config.ray import RayConfig
from deepen_core.errors import MemberError
from deepen_core.members.base import MemberDescription, Work
from deepen_core.members.ray.kept_actor import KeptActor
from deepen_core.members.ray.ledger import Ledger
from deepen_core.members.ray.link import Call, LostActorError, Starter
from deepen_core.members.ray.messages import Reply, Step, WrongReplyError
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.results import Elsewhere


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
        self._actor = KeptActor(name, starter, options.max_restarts)
        weakref.finalize(self, self._actor.close)
        self._ledger = Ledger()
        facts = self._actor.facts
        self.vocabulary_size = facts.vocabulary_size
        self.source_window = facts.source_window
        self.dtype = facts.dtype
        self.batching = facts.batching
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._begun: _Sent | None = None
        self._sent_bytes = self._received_bytes = 0
        self._counted = facts.actor  # whose work is counted now
        self._done_before = (0, 0, 0, 0)  # by actors before it
        self._embeddings: torch.Tensor | None = None

    def describe(self) -> MemberDescription:
        """See `Member.describe`."""
        facts, top_k = self._actor.facts, self._options.top_k
        elsewhere = Elsewhere(
            place=facts.place,
            top_k=None if top_k is None or top_k >= self.vocabulary_size else top_k,
            bytes_sent=self._sent_bytes,
            bytes_received=self._received_bytes,
            restarts=self._actor.restarts,
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
            if self._actor.fault() is None:
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
                self._ledger.mistrust(sent.sequences)
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
        self._actor.call("forget")

    def close(self) -> None:
        """See `Closes.close`: ends the actor, and whatever waits for it."""
        self._actor.close()

    def _ask(self, timeout: float, method: str, *given: object) -> Any:
        """Returns the answer to anything but a step."""
        with self._lock:
            self._actor.check()
            for again in (False, True):
                call = self._actor.call(method, *given)
                try:
                    return self._actor.wait(call, timeout)
                except LostActorError as problem:
                    self._actor.recover(problem, again=again)
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
        self._actor.check()
        for again in (False, True):
            sent = sent or self._send(sequences, ahead)
            try:
                reply = self._reply_to(sent)
            except LostActorError as problem:
                self._actor.recover(problem, again=again)
            except WrongReplyError as problem:
                if again:
                    raise MemberError(
                        f"The actor of member {self.name!r} has twice replied to something else than it was asked "
                        f"({problem}): load the ensemble again."
                    ) from problem
            else:
                if not reply.unknown:
                    return sent, reply
            sent = None
        raise MemberError(f"The actor of member {self.name!r} does not know sequences that it was sent whole.")

    def _reply_to(self, sent: _Sent) -> Reply:
        """Returns the reply to a message; if none can be used, all ids of its sequences are sent the next time."""
        is_usable = False
        try:
            reply: Reply = self._actor.wait(sent.call, self._options.step_timeout)
            reply.check(sent.step, self._actor.facts.actor, self.vocabulary_size)
            self._count(reply)
            is_usable = not reply.unknown
        finally:
            if not is_usable:
                self._ledger.mistrust(sent.sequences)
        return reply

    def _send(self, sequences: Sequence[MemberSequence], ahead: int | None = None) -> _Sent:
        updates = [self._ledger.update(sequence) for sequence in sequences]
        step = Step(next(self._numbers), updates, self._ledger.take_released(), ahead)
        self._sent_bytes += step.size
        return _Sent(step, self._actor.call("run", step), sequences)

    def _count(self, reply: Reply) -> None:
        self._received_bytes += reply.size
        if reply.actor != self._counted:
            work, self._counted = self.work, reply.actor
            self._done_before = (work.forwards, work.ids_run, work.ids_rerun, work.ids_copied)
        now = [before + done for before, done in zip(self._done_before, reply.work, strict=True)]
        self.work.forwards, self.work.ids_run, self.work.ids_rerun, self.work.ids_copied = now


def _state(sequence: MemberSequence) -> tuple[int, int]:
    """Returns what changes whenever a sequence does."""
    return len(sequence.ids), sequence.cached
