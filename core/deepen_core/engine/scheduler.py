"""Decides which requests wait, which prefill and which decode: one batch, changed between steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from deepen_core.engine.decoder import Decoder
from deepen_core.engine.failures import step_failed
from deepen_core.engine.handle import Request
from deepen_core.engine.member_runner import PREFILL_CHUNK
from deepen_core.engine.output_queue import Wakeups
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.errors import DeepenError
from deepen_core.members.sequence import KEPT_TAIL, WORTH_SHARING

_PATIENCE = 4  # maximum factor of the prefill budget, when fewer sequences wait for it than for their prompt to be run
_SHORT = 32  # a prompt of at most this many tokens is run with the first step rather than ahead of it
_Batch = tuple[Decoder, Request | None, bool]
"""What the sequences of one step have in common: the decoder, the request if it is alone, whether prompts are run."""


class Scheduler:
    """The requests of one decoder, and of others with the same members. It may be used by one thread only.

    First come, first admitted. A long prompt is prefilled in pieces, between which the other requests continue to
    decode. Pieces go in turn to the oldest prompt and to the one with least left, so that neither a short prompt waits
    for the whole of a long one nor a long one for a stream of short ones.

    Args:
        decoder: Steps the sequences of requests without a decoder of their own.
        size: Maximum number of sequences that hold caches.
        budget: Maximum number of prompt tokens to run in a step.
    """

    def __init__(self, decoder: Decoder, size: int, budget: int = PREFILL_CHUNK) -> None:
        self.decoder = decoder
        self._size = size
        self._budget = budget
        self._waiting: deque[Request] = deque()
        self._prefilling: list[Request] = []  # the oldest first
        self._decoding: list[Request] = []
        self._oldest_next = False
        self._failed: list[Request] = []  # in this step

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._waiting or self._prefilling or self._decoding)

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests that have not ended; any thread may look at them."""
        return (*self._waiting, *self._prefilling, *self._decoding)

    @property
    def count(self) -> int:
        """Number of requests that have not ended."""
        return len(self._waiting) + self.sequences_held

    @property
    def sequences_held(self) -> int:
        """Number of sequences that hold or may hold caches."""
        return len(self._prefilling) + len(self._decoding)

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue."""
        self._waiting.append(request)

    def step(self) -> None:
        """Advances every request: ends those that are over, admits, decodes a token per sequence, prefills a piece."""
        try:
            self._end_overdue()
            self._admit()
            self._decode()
            self._prefill()
        finally:
            self._deliver_errors()

    def abandon(self, error: Callable[[], DeepenError]) -> None:
        """Ends each request with an error of its own."""
        for request in self.requests:
            request.fail(error())
        self._waiting.clear()
        self._prefilling.clear()
        self._decoding.clear()

    def anew(self) -> Scheduler:
        """Returns a scheduler without requests, whose members have forgotten what they had computed."""
        self.decoder.forget()
        return Scheduler(self.decoder, self._size, self._budget)

    def _end_overdue(self) -> None:
        ended = []
        for request in self.requests:
            if request.cancelled or request.mail.abandoned:
                request.sequence.finish("cancelled")
            elif request.sequence.out_of_time:
                request.sequence.time_out()
            else:
                continue
            ended.append(request)
        self._deliver(ended)
        if not ended:
            return
        self._waiting = deque(r for r in self._waiting if not r.sequence.ended)
        self._prefilling = [r for r in self._prefilling if not r.sequence.ended]
        self._decoding = [r for r in self._decoding if not r.sequence.ended]

    def _admit(self) -> None:
        while self._waiting and self.sequences_held < self._size:
            request = self._waiting.popleft()
            request.sequence.admit()
            self._prefilling.append(request)

    def _decode(self) -> None:
        if not self._decoding:
            return
        together: dict[_Batch, list[EnsembleSequence]] = {}
        for request in self._decoding:
            sequence = request.sequence
            alone = request if sequence.params.deterministic else None
            # A prompt would widen the forward of all others, and prompts that are run one by one take a forward each.
            with_prompt = not sequence.token_ids and sequence.pending > KEPT_TAIL
            together.setdefault((request.decoder or self.decoder, alone, with_prompt), []).append(sequence)
        for (decoder, _, _), sequences in together.items():
            self._step_sequences(decoder, sequences)
        self._deliver(self._decoding)
        self._decoding = [r for r in self._decoding if not r.sequence.ended]

    @staticmethod
    def _step_sequences(decoder: Decoder, sequences: Sequence[EnsembleSequence]) -> None:
        """Steps sequences; if a step fails as a whole, which should not happen, only these requests end."""
        try:
            decoder.step(sequences)
        except Exception as problem:  # noqa: BLE001 (the requests report it)
            for sequence in sequences:
                if not sequence.ended:
                    sequence.fail(step_failed(problem, token=sequence.next_token))

    def _prefill(self) -> None:
        budget = self._budget * self._patience()
        # A prompt that is alone runs at once: in pieces it would take one forward more, which reads all weights again.
        usually_short = _SHORT if self._decoding or len(self._prefilling) > 1 else budget
        self._oldest_next = not self._oldest_next
        while self._prefilling and budget > 0:
            request = self._next_prompt()
            sequence = request.sequence
            decoder = request.decoder or self.decoder
            # The pieces of a deterministic request do not depend on what else there is to do.
            own = sequence.params.deterministic
            short, limit = (KEPT_TAIL, self._budget) if own else (usually_short, budget)
            ahead = sequence.pending > short or decoder.waits_for_likelihood(sequence)
            ran = decoder.prefill(sequence, limit) if ahead else 0
            budget -= ran or sequence.pending
            if sequence.ended:
                self._prefilling.remove(request)
                self._deliver([request])
            elif not ran or sequence.pending <= KEPT_TAIL:
                self._prefilling.remove(request)
                self._decoding.append(request)

    def _deliver(self, requests: Iterable[Request]) -> None:
        """Puts the new output of requests into their queues, and wakes all that wait for it at once."""
        with Wakeups() as wakeups:
            for request in requests:
                request.deliver(wakeups)
                if request.sequence.error is not None:
                    self._failed.append(request)

    def _deliver_errors(self) -> None:
        """Gives requests that have failed in this step their errors.

        Errors keep the frames that raised them alive, and a frame's variables can be cleared only after it has ended.
        """
        for request in self._failed:
            request.deliver_error()
        self._failed.clear()

    def _patience(self) -> int:
        """Returns the factor of the budget that the decoding sequences can wait for: larger pieces are faster."""
        if not self._decoding:
            return _PATIENCE
        return min(max(1, len(self._prefilling) // len(self._decoding)), _PATIENCE)

    def _next_prompt(self) -> Request:
        oldest = self._prefilling[0]
        request = oldest if self._oldest_next else min(self._prefilling, key=lambda r: r.sequence.pending)
        if request.sequence.begun:
            return request
        # A prompt in prefill with the same beginning comes first, so that its cache can be copied.
        begun = (r for r in self._prefilling if r.sequence.begun)
        return next((r for r in begun if _will_share(r.sequence, request.sequence)), request)


def _will_share(begun: EnsembleSequence, other: EnsembleSequence) -> bool:
    """Whether a sequence in prefill will share more of another's prompt than it holds now, in any member."""
    for part, its in zip(begun.member_sequences, other.member_sequences, strict=True):
        if part is not None and its is not None and part.pending > KEPT_TAIL:
            stop = part.cached + WORTH_SHARING
            if min(len(part.ids), len(its.ids)) >= stop and part.ids[:stop] == its.ids[:stop]:
                return True
    return False
