"""Runs sequences one at a time from their recurrent states, copies of which are kept to go back to.

A step needs the logits after the ids that are new. The main member's ids only grow, so its state only advances, by one
id a step. Another member's last ids may change when text is appended: most often none or one of them, and none that are
settled (`MemberSequence.settled`).

1. If nothing is new, the logits are those of the last step.
2. Go back, if ids have changed, to the longest copy without them.
3. Copy the state, if ids before the end may still change. Keep the last copy that ends in settled ids, and the newest.
4. Run the ids after it: at once, or one by one where that is faster, or all that the model can do.

A prompt is cut before its last few ids, for a copy there. With real tokenizers (`benchmarks/recurrent.py`), another
member with three copies runs 1.0 to 1.5 ids a token, at most 5 % more than are new; six copies save nothing. With two
it runs up to 40 % more (if main speaks in characters), and with one eight times as many.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from deepen_core.members.base import Work
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence
from deepen_core.members.transformers.recurrent_state import Recurrence, State, StateCopy

KEPT_COPIES = 3
"""Most copies of its state that a sequence keeps."""

# Text that is appended seldom changes more than this many ids.
_REACH = 4
# Ids that are cheaper to run again than to cut a forward in two for.
_FEW = 16


class RecurrentCache:
    """The state of one sequence, and copies of it.

    Args:
        owner: The runner that fills it; a cache filled by another runner cannot be continued.

    Attributes:
        state: The state.
        copies: The copies, the shortest first.
        known: Number of ids, from the first on, that were run before the state went back.
        broken: Whether a forward was interrupted, so that the state is worthless.
    """

    def __init__(self, owner: RecurrentRunner) -> None:
        self.owner = owner
        self.state = owner.fresh_state()
        self.copies: list[StateCopy] = []
        self.known = 0
        self.broken = False

    def rewind(self, length: int) -> None:
        """Goes back to the longest state of at most `length` ids."""
        self.known = length
        if self.state.length <= length:
            return
        self.copies = [copy for copy in self.copies if copy.length <= length]
        if self.copies:
            self.state.restore(self.copies[-1])
        else:
            self.state = self.owner.fresh_state()

    def keep(self, settled: int) -> None:
        """Copies the state, and drops copies that are needed least.

        Args:
            settled: Number of ids that cannot change any more.
        """
        if not self.state.length or (self.copies and self.copies[-1].length == self.state.length):
            return
        self.copies.append(self.state.copy())
        firm = [place for place, copy in enumerate(self.copies) if copy.length <= settled]
        del self.copies[: firm[-1] if firm else 0]
        while len(self.copies) > KEPT_COPIES:
            del self.copies[1 if firm else 0]

    def free(self) -> None:
        """See `SequenceCache.free`."""
        self.state = self.owner.fresh_state()
        self.copies = []


class RecurrentRunner:
    """Runs each sequence by itself, from its state.

    Args:
        model: The model.
        recurrence: How it continues a text.
        vocabulary_size: Logits beyond it are not tokens.
        work: Counts what is run.
    """

    def __init__(self, model: Any, recurrence: Recurrence, vocabulary_size: int, work: Work) -> None:
        self._model = model
        self._recurrence = recurrence
        self._size = vocabulary_size
        self._work = work
        accepts = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": KEPT_TAIL} if "logits_to_keep" in accepts else {}

    def fresh_state(self) -> State:
        """Returns the state before any text."""
        return State(self._model, self._recurrence.attributes)

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        return torch.stack([self._next(sequence) for sequence in sequences]).float()

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """See `Member.prefill`."""
        if not self._recurrence.several:
            return 0
        cache = self._ready(sequence)
        count = max(0, min(limit, sequence.pending - KEPT_TAIL))
        if count:
            self._run(sequence, cache, sequence.cached + count)
        return count

    def _next(self, sequence: MemberSequence) -> torch.Tensor:
        """Returns the logits [vocabulary] after the last id of a sequence."""
        if sequence.logits_after is None:
            self._run(sequence, self._ready(sequence), len(sequence.ids))
        logits = sequence.logits_after
        assert logits is not None, "just run"
        return logits

    def _ready(self, sequence: MemberSequence) -> RecurrentCache:
        """Returns the cache of a sequence, whose state has not seen any of the ids to run."""
        cache = sequence.cache
        if not isinstance(cache, RecurrentCache) or cache.owner is not self or cache.broken:
            sequence.release()
            cache = sequence.cache = RecurrentCache(self)
            sequence.cached = 0
        cache.rewind(len(sequence.ids) - sequence.pending)
        sequence.cached = cache.state.length
        return cache

    def _run(self, sequence: MemberSequence, cache: RecurrentCache, stop: int) -> None:
        """Runs the ids up to `stop`, and copies the state where it may have to go back to."""
        start, length, settled = cache.state.length, len(sequence.ids), sequence.settled
        cut = max(settled, length - _REACH)
        worth_it = stop - start > _FEW or not (start or self._recurrence.several)
        for end in (cut, stop) if worth_it and start < cut < stop else (stop,):
            if settled < length <= cache.state.length + _FEW:
                cache.keep(settled)
            self._advance(sequence, cache, end)

    def _advance(self, sequence: MemberSequence, cache: RecurrentCache, end: int) -> None:
        """Runs the ids up to `end`."""
        state, count = cache.state, end - cache.state.length
        at_once = not state.length or (self._recurrence.several and count > self._recurrence.singly)
        width = count if at_once else 1
        while state.length < end:
            again = max(0, min(cache.known, state.length + width) - state.length)
            taken = sequence.take_pending(width)
            cache.broken = True
            logits = state.run(taken, **self._options)
            cache.broken = False
            self._work.forwards += 1
            self._work.ids_run += len(taken) - again
            self._work.ids_rerun += again
            sequence.keep_logits(logits[-KEPT_TAIL:, : self._size])
