"""A member whose distributions a server computes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from deepen_core.members.base import MemberDescription, Work
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence
from deepen_core.members.server.api import TopTokens
from deepen_core.members.server.connection import ServerError, Traffic
from deepen_core.members.server.model_server import ModelServer
from deepen_core.members.server.slots import Slots
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.top_logprobs import dense_logits
from deepen_core.results import ONE_AT_A_TIME, Elsewhere

_WORTH_FILLING = 64  # ids: a shorter prompt is run in the step itself, a request fewer
_NO_SLOT = -1


@dataclass(frozen=True)
class _Found:
    """The replies of a step: `before` the last id, if that was asked for, and after it."""

    before: TopTokens | None
    after: TopTokens


@dataclass(frozen=True)
class _Step:
    """A step of one sequence that was begun.

    Attributes:
        ids: Those of the sequence then.
        before: Its logits before the last id, if they were known then.
        found: The replies.
    """

    ids: list[int]
    before: torch.Tensor | None
    found: Future[_Found]


class ServerMember:
    """A tokenizer, and a server with its model. Every request holds the ids of a whole text.

    A reply is about the place after the last id alone. Token healing and "bytes" look at the places before it as well:
    those are remembered from earlier steps, and where a step adds several ids, the last but one is asked for too.

    Args:
        name: Its name in reports.
        server: The server.
        tokenizer: Its tokenizer.
        context_window: In its own tokens.
        top_k: Number of tokens whose probabilities are fetched.
        architecture: Kind of model, for reports.

    Attributes:
        work: Counts of the work done.
        vocabulary_size: See `Member.vocabulary_size`: ids that pad the model's logits are left out.
        dtype: Of its logits; what the server computes in is not known.
        device: Of its logits.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(
        self,
        name: str,
        server: ModelServer,
        tokenizer: MemberTokenizer,
        context_window: int,
        top_k: int,
        architecture: str,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.context_window = context_window
        self.work = Work()
        size, known = tokenizer.vocabulary.size, server.served.vocabulary_size
        self.vocabulary_size = size if known is None else min(size, known)
        self._server = server
        self._top_k = top_k
        self._architecture = architecture
        self._slots = None if server.served.slots is None else Slots(server.served.slots)
        self._steps: weakref.WeakKeyDictionary[MemberSequence, _Step] = weakref.WeakKeyDictionary()

    @property
    def traffic(self) -> Traffic:
        """What went over the wire."""
        return self._server.connection.traffic

    @property
    def asks_by_token(self) -> bool:
        """See `deepen_core.members.base.asks_by_token`."""
        return self._server.api.asks_by_token

    @property
    def batching(self) -> str:
        """See `Member.batching`."""
        if self._slots is None:
            return "on its server"
        if self._slots.count == 1:
            return f"{ONE_AT_A_TIME}: its server has one slot (start it with --parallel 8)"
        return f"on its server, {self._slots.count} sequences at a time"

    def describe(self) -> MemberDescription:
        """See `Member.describe`."""
        traffic = self.traffic
        elsewhere = Elsewhere(
            place=f"{self._server.api.label} at {self._server.connection.url}",
            top_k=None if self._top_k >= self.vocabulary_size else self._top_k,
            bytes_sent=traffic.bytes_sent,
            bytes_received=traffic.bytes_received,
        )
        return MemberDescription(self._architecture, self._server.served.parameters, elsewhere)

    def warm_up(self) -> None:
        """See `Member.warm_up`: the server was tried when the member was described."""

    def begin(self, sequences: Sequence[MemberSequence]) -> None:
        """See `Begins.begin`."""
        for sequence in sequences:
            self._begun(sequence)

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`.

        If some of several requests fail, the others' replies are kept for the next call, which asks for one sequence.

        Raises:
            ServerError: If a request fails.
        """
        steps = [self._begun(sequence) for sequence in sequences]
        faults = [fault for step in steps if (fault := step.found.exception()) is not None]
        if faults and len(steps) > 1:
            raise ServerError(f"{len(faults)} of {len(steps)} requests failed, one of them because {faults[0]}")
        for sequence in sequences:
            self._steps.pop(sequence, None)
        if faults:
            raise faults[0]
        return torch.stack([self._taken(sequence, step) for sequence, step in zip(sequences, steps, strict=True)])

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """See `Member.prefill`."""
        if sequence.pending - KEPT_TAIL < _WORTH_FILLING or self._is_begun(sequence):
            return 0
        count = min(limit, sequence.pending - KEPT_TAIL)
        ids = sequence.ids[: len(sequence.ids) - sequence.pending + count]
        ran = self._server.connection.start(self._server.api.fill(self._server, ids, self._slot(sequence))).result()
        self._count(len(sequence.take_pending(count)), ran, 1)
        return count

    def token_logprobs(self, ids: Sequence[int], start: int, source: Sequence[int] | None = None) -> list[float]:  # noqa: ARG002
        """See `Member.token_logprobs`.

        Raises:
            ServerError: If a request fails.
        """
        work = self._server.api.token_logprobs(self._server, ids, start, self._top_k)
        return self._server.connection.start(work).result()

    def _begun(self, sequence: MemberSequence) -> _Step:
        """Returns the step of a sequence, which is begun if it was not."""
        if not self._is_begun(sequence):
            ids = list(sequence.ids)
            known = sequence.logits_before if sequence.cached >= len(ids) - 1 else None
            is_looked_at = sequence.kept_tail > 1 and len(ids) > 1
            work = self._ask(ids, self._slot(sequence), with_before=is_looked_at and known is None)
            self._steps[sequence] = _Step(ids, known, self._server.connection.start(work))
        return self._steps[sequence]

    def _is_begun(self, sequence: MemberSequence) -> bool:
        step = self._steps.get(sequence)
        return step is not None and step.ids == sequence.ids

    async def _ask(self, ids: list[int], slot: int, *, with_before: bool) -> _Found:
        api, given = self._server.api, (self._top_k, slot)
        before = await api.next_tokens(self._server, ids[:-1], *given) if with_before else None
        return _Found(before, await api.next_tokens(self._server, ids, *given))

    def _taken(self, sequence: MemberSequence, step: _Step) -> torch.Tensor:
        """Returns the logits [vocabulary] of a step, and tells the sequence."""
        found = step.found.result()
        after = self._dense(found.after)
        before = step.before if found.before is None else self._dense(found.before)
        asked = [found.after] if found.before is None else [found.before, found.after]
        ran = [one.ids_run for one in asked if one.ids_run is not None]
        self._count(len(sequence.take_pending()), sum(ran) if ran else None, len(asked))
        sequence.keep_logits(torch.stack([after] if before is None else [before, after]))
        return after

    def _dense(self, top: TopTokens) -> torch.Tensor:
        """Returns logits [vocabulary]; tokens that were not fetched share what is left."""
        is_token = top.ids < self.vocabulary_size
        ids, logprobs = top.ids[is_token], top.logprobs[is_token]
        return dense_logits(ids[None], logprobs[None], self.vocabulary_size)[0]

    def _slot(self, sequence: MemberSequence) -> int:
        return _NO_SLOT if self._slots is None else self._slots.seat(sequence)

    def _count(self, new: int, ran: int | None, requests: int) -> None:
        """Counts the ids of some requests for a text with `new` ids; `ran` is None if the server does not say it."""
        ran = new if ran is None else ran
        self.work.forwards += requests
        self.work.ids_run += min(new, ran)
        self.work.ids_rerun += max(0, ran - new)
        self.work.ids_copied += max(0, new - ran)
