"""Runs sequences by llama.cpp, those of a step together.

1. Give each new sequence a slot, which shares the places of another one with the same beginning.
2. Of several sequences, run more than 32 new ids of one (a prompt) alone, in batches, except the last two.
3. Run the remaining new ids of all sequences in as few batches as possible.

A sequence that is to depend on no other has a pool of its own, and its prompt is cut at the same places always.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import torch

from deepen_core.errors import MemberError
from deepen_core.members.base import Work
from deepen_core.members.llama_cpp.context import BATCH
from deepen_core.members.llama_cpp.model import LlamaModel
from deepen_core.members.llama_cpp.pool import MOST_SEQUENCES, NoRoomError, Pool, Slot
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence, longest_shared

# A sequence with more new ids than this is run alone first, so that later sequences can copy from it.
_LONG = 32
# Ids of a batch of a prompt that is cut at the same places always; with the last two, its rest is a batch as well.
_CHUNK = BATCH - KEPT_TAIL


class LlamaRunner:
    """Keeps the keys and values of sequences, and runs them.

    Args:
        model: The model.
        name: The member's name, for error messages.
        most: Most ids whose keys and values are held.
        exact: Whether keys and values are kept in float32.
        work: Counts what is run.
    """

    def __init__(self, model: LlamaModel, name: str, most: int, work: Work, *, exact: bool) -> None:
        self._model = model
        self._name = name
        self._most = most
        self._exact = exact
        self._work = work
        self._pool = Pool(model, most, exact=exact)

    def forget(self) -> None:
        """See `Forgets.forget`."""
        with self._pool.busy():
            self._pool.forget()

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        shared = [sequence for sequence in sequences if sequence.shares]
        if len(shared) == len(sequences):
            return self._together(self._pool, sequences)
        logits = torch.empty(len(sequences), self._model.vocabulary_size)
        groups = [(self._pool, shared)] if shared else []
        groups += [(self._own_pool(sequence), [sequence]) for sequence in sequences if not sequence.shares]
        places = {id(sequence): place for place, sequence in enumerate(sequences)}
        for pool, group in groups:
            logits[[places[id(sequence)] for sequence in group]] = self._together(pool, group)
        return logits

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """See `Member.prefill`. What is to depend on no other sequence is run in whole batches only."""
        pool = self._pool if sequence.shares else self._own_pool(sequence)
        with pool.busy():
            self._make_room(pool, [sequence])
            slot = self._slot(pool, sequence)
            count = max(0, min(limit, sequence.pending - KEPT_TAIL))
            if not sequence.shares:
                count -= count % _CHUNK
            self._run_ahead(sequence, slot, count)
            return count

    def logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """See `Member.token_logprobs`."""
        slot = self.reserve(len(ids))
        try:
            read = self.run_on(slot, ids[:-1], 0, start - 1)
            return [float(torch.log_softmax(logits, dim=-1)[ids[place + 1]]) for place, logits in read]
        finally:
            slot.free()

    def reserve(self, length: int) -> Slot:
        """Returns the slot of a text that is run by `run_on`, with room for some number of ids."""
        with self._pool.busy():
            self._pool.make_room(length + sum(len(slot.ids) for slot in self._pool.slots), 1)
            return self._take(self._pool)

    def run_on(self, slot: Slot, ids: Sequence[int], same: int, first: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Runs the ids of a text that a slot does not hold, several in one decode.

        Args:
            slot: The slot.
            ids: The text.
            same: Number of ids, from the first on, that the slot holds and that stay as they are.
            first: The first place whose logits are wanted; those of all later places are, too.

        Yields:
            Each wanted place, with the logits [vocabulary] after its id.
        """
        pool = self._pool
        with pool.busy():
            held = sum(len(other.ids) for other in pool.slots if other is not slot)
            pool.make_room(len(ids) + held, 0)
            at = min(same, len(slot.ids))  # a context that has grown may hold less
            pool.cut(slot, at)
            while at < len(ids):
                reads = at >= first
                stop = min(len(ids), at + pool.context.outputs) if reads else min(len(ids), first, at + BATCH)
                logits = self._run(pool, [(slot, ids[at:stop], (stop - at) * reads)])
                self._work.forwards += 1
                yield from enumerate(logits, at)
                at = stop

    def no_logits(self) -> torch.Tensor:
        """Returns logits of no place, [0, vocabulary]."""
        return torch.empty(0, self._model.vocabulary_size)

    def _own_pool(self, sequence: MemberSequence) -> Pool:
        """Returns the pool of a sequence that depends on no other."""
        slot = sequence.cache
        if isinstance(slot, Slot) and slot.number >= 0 and slot.pool is not self._pool:
            return slot.pool
        return Pool(self._model, self._most, exact=self._exact, single=True)

    def _together(self, pool: Pool, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        with pool.busy():
            self._make_room(pool, sequences)
            alone = len(sequences) == 1
            slots = [self._admit(pool, sequence, alone=alone) for sequence in sequences]
            found = [self._run_batch(pool, batch) for batch in _batches(list(zip(sequences, slots, strict=True)))]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _run_batch(self, pool: Pool, batch: Sequence[tuple[MemberSequence, Slot]]) -> torch.Tensor:
        """Runs all pending ids of some sequences; returns their logits [sequences, vocabulary]."""
        work = []
        for sequence, slot in batch:
            pending = sequence.take_pending()
            pool.cut(slot, len(sequence.ids) - len(pending))
            work.append((slot, pending, min(len(pending), sequence.kept_tail)))
        logits = self._run(pool, work)
        kept = [keep for _, _, keep in work]
        for (sequence, _), part in zip(batch, logits.split(kept), strict=True):
            sequence.keep_logits(part)
        self._work.forwards += 1
        self._work.ids_run += sum(len(ids) for _, ids, _ in work)
        if len(set(kept)) == 1:
            return logits[kept[0] - 1 :: kept[0]]
        return logits[torch.tensor(kept).cumsum(0) - 1]

    def _run_ahead(self, sequence: MemberSequence, slot: Slot, count: int) -> None:
        """Runs the first pending ids of a sequence alone."""
        while count > 0:
            ids = sequence.take_pending(min(count, _CHUNK))
            slot.pool.cut(slot, sequence.cached - len(ids))
            sequence.keep_logits(self._run(slot.pool, [(slot, ids, 1)]))
            self._work.forwards += 1
            self._work.ids_run += len(ids)
            count -= len(ids)

    def _make_room(self, pool: Pool, sequences: Sequence[MemberSequence]) -> None:
        """Makes room for all ids of some sequences beside those of others."""
        asked = {id(sequence.cache) for sequence in sequences if sequence.cache is not None}
        held = [slot for slot in pool.slots if id(slot) not in asked]
        ids = sum(len(sequence.ids) for sequence in sequences) + sum(len(slot.ids) for slot in held)
        pool.make_room(ids, len(sequences) - (len(pool.slots) - len(held)))

    def _admit(self, pool: Pool, sequence: MemberSequence, *, alone: bool) -> Slot:
        """Returns the slot of a sequence; runs long text up to its last ids, so that the next sequence can copy it."""
        slot = self._slot(pool, sequence)
        ahead = sequence.pending - KEPT_TAIL
        if alone:
            self._run_ahead(sequence, slot, ahead - ahead % _CHUNK)
        elif sequence.pending > _LONG:
            self._run_ahead(sequence, slot, ahead)
        return slot

    def _slot(self, pool: Pool, sequence: MemberSequence) -> Slot:
        """Returns the slot of a sequence; a new one begins with the longest beginning that it shares."""
        slot = sequence.cache
        if not (isinstance(slot, Slot) and slot.pool is pool and slot.number >= 0):
            sequence.release()
            sequence.cache = slot = self._take(pool)
            sequence.cached = 0
            # A sequence that is garbage-collected without `release` frees its slot too.
            weakref.finalize(sequence, slot.free).atexit = False
        sequence.cached = min(sequence.cached, len(slot.ids))
        if not sequence.cached:
            self._share(sequence, slot)
        return slot

    def _share(self, sequence: MemberSequence, slot: Slot) -> None:
        found = longest_shared(sequence.ids, (other for other in slot.pool.slots if other is not slot))
        if found is not None:
            other, length = found
            slot.pool.cut(slot, 0)
            slot.pool.copy(other, slot, length)
            sequence.cached = length
            self._work.ids_copied += length

    def _take(self, pool: Pool) -> Slot:
        try:
            return pool.take()
        except NoRoomError as full:
            raise MemberError(
                f"Member {self._name!r} has {MOST_SEQUENCES} sequences already, and llama.cpp cannot have more: lower "
                "max_batch_size."
            ) from full

    def _run(self, pool: Pool, work: Sequence[tuple[Slot, Sequence[int], int]]) -> torch.Tensor:
        try:
            return pool.run(work)
        except NoRoomError as full:
            new, held = sum(len(ids) for _, ids, _ in work), sum(len(slot.ids) for slot in pool.slots)
            raise MemberError(
                f"Member {self._name!r} has no room for {new} more ids: the keys and values of at most {pool.most:,} "
                f"are held, and {len(pool.slots)} sequences have {held:,} of them. Lower max_batch_size, shorten the "
                "prompts, or raise MemberConfig(model_kwargs={'n_ctx': ...})."
            ) from full


def _batches(given: list[tuple[MemberSequence, Slot]]) -> Iterator[list[tuple[MemberSequence, Slot]]]:
    """Yields sequences in order, in groups of at most `BATCH` pending ids."""
    batch: list[tuple[MemberSequence, Slot]] = []
    count = 0
    for sequence, slot in given:
        if count + sequence.pending > BATCH:
            yield batch
            batch, count = [], 0
        batch.append((sequence, slot))
        count += sequence.pending
    yield batch
