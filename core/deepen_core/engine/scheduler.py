"""Which requests wait, which prefill, which decode: one batch, changed between steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from deepen_core.engine.decoder import Decoder
from deepen_core.engine.failures import forget_frames, step_failed
from deepen_core.engine.handle import Request
from deepen_core.engine.member_runner import PREFILL_CHUNK
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.errors import DeepenError
from deepen_core.members.base import KEPT_TAIL, WORTH_SHARING

_PATIENCE = 4  # so many times that, where fewer sequences wait for it than for their prompt to be read
_SHORT = 32  # a prompt of so many tokens is run with the first step rather than ahead of it


class Scheduler:
    """Requests on their way through one decoder. One thread may touch it.

    First come, first admitted. A long prompt is prefilled in pieces, between which the others decode on; pieces go in
    turn to the oldest prompt and to the one with least left, so that neither a short one waits for all of a long one
    nor a long one for a stream of short ones.

    Args:
        decoder: Steps the sequences.
        size: So many sequences hold caches at most.
        budget: Prompt tokens to run in a step at most.
    """

    def __init__(self, decoder: Decoder, size: int, budget: int = PREFILL_CHUNK) -> None:
        self.decoder = decoder
        self._size = size
        self._budget = budget
        self._waiting: deque[Request] = deque()
        self._prefilling: list[Request] = []  # the oldest first
        self._decoding: list[Request] = []
        self._oldest_next = False

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._waiting or self._prefilling or self._decoding)

    @property
    def sequences_held(self) -> int:
        """Sequences that hold or may hold caches."""
        return len(self._prefilling) + len(self._decoding)

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue."""
        self._waiting.append(request)

    def step(self) -> None:
        """Moves every request on: ends what is over, admits, decodes a token a sequence, prefills a piece."""
        self._end_overdue()
        self._admit()
        self._decode()
        self._prefill()

    def abandon(self, error: Callable[[], DeepenError]) -> None:
        """Ends all requests with an error of their own each."""
        for request in (*self._waiting, *self._prefilling, *self._decoding):
            request.fail(error())
        self._waiting.clear()
        self._prefilling.clear()
        self._decoding.clear()

    def _end_overdue(self) -> None:
        ended = False
        for request in (*self._waiting, *self._prefilling, *self._decoding):
            if request.cancelled or request.mail.abandoned:
                request.sequence.finish("cancelled")
            elif request.sequence.out_of_time:
                request.sequence.finish("timeout")
            else:
                continue
            request.deliver()
            ended = True
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
        self._step_sequences([request.sequence for request in self._decoding])
        for request in self._decoding:
            request.deliver()
        self._decoding = [r for r in self._decoding if not r.sequence.ended]

    def _step_sequences(self, sequences: Sequence[EnsembleSequence]) -> None:
        """Steps sequences; should a step fail as a whole, which none is known to do, it ends only these requests."""
        try:
            self.decoder.step(sequences)
        except Exception as problem:  # noqa: BLE001 (the requests tell it)
            for sequence in sequences:
                if not sequence.ended:
                    sequence.fail(step_failed(problem, token=sequence.next_token))
            forget_frames(problem)

    def _prefill(self) -> None:
        budget = self._budget * self._patience()
        # Where others decode, every token more than theirs would widen the forward of all of them.
        short = KEPT_TAIL if self._decoding else _SHORT
        self._oldest_next = not self._oldest_next
        while self._prefilling and budget > 0:
            request = self._next_prompt()
            sequence = request.sequence
            ran = self.decoder.prefill(sequence, budget) if sequence.pending > short else 0
            budget -= ran or sequence.pending
            if sequence.ended:
                self._prefilling.remove(request)
                request.deliver()
            elif not ran or sequence.pending <= KEPT_TAIL:
                self._prefilling.remove(request)
                self._decoding.append(request)

    def _patience(self) -> int:
        """How many times the budget the decoding sequences can wait for: larger pieces are read faster."""
        if not self._decoding:
            return _PATIENCE
        return min(max(1, len(self._prefilling) // len(self._decoding)), _PATIENCE)

    def _next_prompt(self) -> Request:
        oldest = self._prefilling[0]
        request = oldest if self._oldest_next else min(self._prefilling, key=lambda r: r.sequence.pending)
        if request.sequence.begun:
            return request
        # A prompt under way that begins as this one does comes first, so that its cache can be copied.
        begun = (r for r in self._prefilling if r.sequence.begun)
        return next((r for r in begun if _will_share(r.sequence, request.sequence)), request)


def _will_share(begun: EnsembleSequence, other: EnsembleSequence) -> bool:
    """Whether a sequence in prefill will hold more of another's prompt than it does now, in any member."""
    for part, its in zip(begun.member_sequences, other.member_sequences, strict=True):
        if part is not None and its is not None and part.pending > KEPT_TAIL:
            stop = part.cached + WORTH_SHARING
            if min(len(part.ids), len(its.ids)) >= stop and part.ids[:stop] == its.ids[:stop]:
                return True
    return False
