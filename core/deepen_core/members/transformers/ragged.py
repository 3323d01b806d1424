"""Runs sequences of different lengths in one forward, without padding.

Shapes: ids and positions [2, slots, count]; masks [slots, 1, count, positions]; logits [slots, keep, vocabulary].

1. Give each new sequence a slot of the cache, copying the keys and values of another one with the same beginning.
2. Of several sequences, run more than 32 new ids of one (a prompt) alone, in chunks of at most 1024, except the last
   two.
3. Choose the cheapest `count` of ids to run of every sequence at once: a sequence with more new ids runs the surplus
   alone first, one with fewer runs its last ids again.
4. Run all slots from the first to the last of the sequences in one forward, masked where their lengths differ.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deepen_core.members.base import Work
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence, longest_shared
from deepen_core.members.text_tree import common_length
from deepen_core.members.transformers.given_tokens import ReadText, logprobs_in_piece, pieces, places_kept
from deepen_core.members.transformers.kv_cache import RaggedCache, Slot, cache_option
from deepen_core.members.transformers.masks import Masks

# A sequence with more new ids than this is run alone first, so that later sequences can copy from it.
_LONG = 32
# Ids of one forward of a sequence that is run alone.
_CHUNK = 1024
# One more forward costs as much as this many ids: measured on a CPU core; a GPU has room for far more.
_OVERHEAD = {"cpu": 16, "cuda": 256}


def overhead(device: torch.device) -> int:
    """Returns how many more ids a device could run in the time that another forward takes."""
    return _OVERHEAD.get(device.type, _OVERHEAD["cuda"])


class RaggedForward:
    """One forward of a model over adjacent slots of a cache.

    All sequences run the same number of ids. A sequence with fewer new ids runs its last ones again, with the same
    result: nothing is padded, and the logits at the last places belong to the last ids of every sequence.

    Args:
        model: The model.
        cache: The cache of the sequences.
        masks: The masks that the model takes.
    """

    def __init__(self, model: Any, cache: RaggedCache, masks: Masks) -> None:
        self._model = model
        self._cache = cache
        self._masks = masks
        self._cache_option = cache_option(model)
        accepts = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in accepts

    def run(self, texts: Mapping[Slot, Sequence[int]], count: int, keep: int) -> tuple[list[Slot], torch.Tensor]:
        """Runs the last ids of some texts and caches them.

        Args:
            texts: For each slot, the ids that it holds afterwards; it must already hold those before the last `count`.
            count: Number of ids to run, at most the length of every text and of every slot in between.
            keep: Number of places at the end whose logits are returned.

        Returns:
            The slots that were run, including those in between, and their logits [slots, keep, vocabulary].
        """
        slots = self._cache.between(texts)
        # A slot in between that is still empty runs any id, and then correctly holds that id.
        sequences = [texts.get(slot) or slot.ids or [0] for slot in slots]
        starts = [len(sequence) - count for sequence in sequences]
        ids = [list(sequence[-count:]) for sequence in sequences]
        places = [list(range(start, start + count)) for start in starts]
        for slot, start in zip(slots, starts, strict=True):
            del slot.ids[start:]  # until the forward has succeeded
        batch = torch.tensor([ids, places], device=self._model.device)  # [2, slots, count]
        self._cache.aim(slots, starts, batch[1])
        options: dict[str, Any] = {self._cache_option: self._cache, "use_cache": True}
        if self._keeps:
            options["logits_to_keep"] = keep
        if min(starts) != max(starts):
            options["attention_mask"] = self._masks.make(batch[1], max(starts) + count)
        output = self._model(batch[0], position_ids=batch[1], **options)
        for slot, new in zip(slots, ids, strict=True):
            slot.ids += new
        return slots, output.logits[:, -keep:]


class RaggedRunner:
    """Keeps sequences in a ragged cache and runs them together.

    Args:
        model: The model.
        masks: The masks that it takes.
        vocabulary_size: Logits beyond it are not tokens.
        work: Counts what is run.
    """

    def __init__(self, model: Any, masks: Masks, vocabulary_size: int, work: Work) -> None:
        self.cache = RaggedCache(keeps_last=True)
        self.masks = masks
        self._forward = RaggedForward(model, self.cache, masks)
        self._size = vocabulary_size
        self._work = work
        self._overhead = overhead(model.device)

    def forget(self) -> None:
        """See `Forgets.forget`."""
        self.cache.forget()

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        with self.cache.busy():
            known = {place: last for place, one in enumerate(sequences) if (last := self._last_read(one)) is not None}
            left = [place for place in range(len(sequences)) if place not in known]
            if not known:
                return self._run(sequences)
            found = torch.stack(list(known.values())).float()
            if left:
                found = torch.cat([found, self._run([sequences[place] for place in left])])
                found = found[torch.tensor([*known, *left]).argsort().to(found.device)]
            return found

    def _run(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        longest = _CHUNK if len(sequences) == 1 else _LONG
        slots = [self._admit(sequence, longest) for sequence in sequences]
        count = self._count(sequences, slots)
        for sequence, slot in zip(sequences, slots, strict=True):
            self._run_ahead(sequence, slot, sequence.pending - count)
        return self._run_together(sequences, slots, count)

    def _last_read(self, sequence: MemberSequence) -> torch.Tensor | None:
        """Returns the logits [vocabulary] after a prompt that was read ahead; None if there is something to run."""
        slot = sequence.cache
        ahead = slot.ahead if isinstance(slot, Slot) else None
        if not isinstance(slot, Slot) or ahead is None:
            return None
        slot.ahead = None
        ids, tail = ahead
        if not (slot.held and slot.ids == ids == sequence.ids and sequence.pending == KEPT_TAIL):
            return None
        count = len(sequence.take_pending())
        sequence.keep_logits(tail)
        self._work.ids_run += count
        self._work.ids_rerun -= count
        return tail[-1]

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """See `Member.prefill`."""
        with self.cache.busy():
            slot = self._slot(sequence)
            count = max(0, min(limit, sequence.pending - KEPT_TAIL))
            self._run_ahead(sequence, slot, count)
            return count

    def read_ahead(self, sequence: MemberSequence, start: int) -> list[float] | None:
        """See `ReadsAhead.read_ahead`: forwards whose logits are looked at everywhere, one if they fit into 256 MiB.

        The last ids are run too, since they are asked about, and are still pending afterwards. If they stay the same
        until the next step, it runs nothing.
        """
        ids, ahead = sequence.ids, len(sequence.ids) - KEPT_TAIL
        if ahead < 1:
            return None
        with self.cache.busy():
            slot = self._slot(sequence, shares=False)  # of what is copied, the log-probabilities must be known
            first, found = self._share_read(ids, start, slot)
            for piece in pieces(first, len(ids), self._size):
                _, logits = self._forward.run({slot: ids[: piece.stop]}, len(piece), places_kept(piece, start))
                logits = logits[0, :, : self._size]  # [places, vocabulary]
                found += logprobs_in_piece(logits, ids, piece, start)
                self._note(min(piece.stop, ahead) - piece.start, len(piece))
            sequence.take_pending(ahead)
            sequence.keep_logits(logits[-KEPT_TAIL - 1 : -KEPT_TAIL].clone())  # not all of them
            if sequence.cache is slot:  # a step that took too long may find its sequence ended
                slot.ahead = list(ids), logits[-KEPT_TAIL:].clone()  # [KEPT_TAIL, vocabulary]
                slot.read = ReadText(list(ids), start, found)
        return found

    def _share_read(self, ids: Sequence[int], start: int, slot: Slot) -> tuple[int, list[float]]:
        """Copies the longest beginning that another prompt shares.

        Returns:
            The number of ids to leave out, and the log-probabilities that are known. The last id that is shared is run
            again: the next one is looked up after it.
        """
        wanted = ids[:-KEPT_TAIL]
        shared = {
            min(other.read.shared(wanted, start), common_length(other.ids, wanted)): other
            for other in self.cache.slots
            if other.read is not None
        }
        length = max(shared, default=0)
        read = shared[length].read if length > start else None
        if read is None or (shared[length] is slot and _is_asked_again(ids, length)):
            self.cache.copy(slot, slot, 0)
            return 0, []
        self.cache.copy(shared[length], slot, length - 1)
        self._work.ids_copied += length - 1
        return length - 1, read.logprobs[: length - start]

    def _admit(self, sequence: MemberSequence, longest: int) -> Slot:
        """Returns the slot of a sequence; runs long text up to its last ids, so that the next sequence can copy it."""
        slot = self._slot(sequence)
        if sequence.pending > longest:
            self._run_ahead(sequence, slot, sequence.pending - KEPT_TAIL)
        return slot

    def _slot(self, sequence: MemberSequence, *, shares: bool = True) -> Slot:
        """Returns the slot of a sequence; a new one may start with a copy of the longest beginning that it shares."""
        if not (isinstance(sequence.cache, Slot) and sequence.cache.held):
            sequence.release()
            sequence.cache = self.cache.take()
            sequence.cached = 0
            # A sequence that is garbage-collected without `release` frees its slot too.
            weakref.finalize(sequence, sequence.cache.free).atexit = False
        slot = sequence.cache
        sequence.cached = min(sequence.cached, len(slot.ids))
        if shares and not sequence.cached:
            self._share(sequence, slot)
        return slot

    def _share(self, sequence: MemberSequence, slot: Slot) -> None:
        other, length = longest_shared(sequence.ids, self.cache.slots) or (slot, 0)
        if other is slot and _is_asked_again(sequence.ids, length):
            length = 0
        self.cache.copy(other, slot, length)
        sequence.cached = length
        self._work.ids_copied += length

    def _count(self, sequences: Sequence[MemberSequence], slots: Sequence[Slot]) -> int:
        """Returns how many ids of every sequence to run at once; any surplus of a sequence is run alone before."""
        lengths = {slot: len(sequence.ids) for sequence, slot in zip(sequences, slots, strict=True)}
        between = self.cache.between(slots)
        most = min(lengths.get(slot) or len(slot.ids) or 1 for slot in between)
        pending = [sequence.pending for sequence in sequences]

        def cost(count: int) -> int:
            return count * len(between) + sum(self._overhead + p - count for p in pending if p > count)

        return min(sorted({min(p, most) for p in pending}), key=cost)

    def _run_ahead(self, sequence: MemberSequence, slot: Slot, count: int) -> None:
        """Runs the first pending ids of a sequence alone."""
        while count > 0:
            taken = sequence.take_pending(min(count, _CHUNK))
            _, logits = self._forward.run({slot: sequence.ids[: sequence.cached]}, len(taken), keep=1)
            sequence.keep_logits(logits[0, :, : self._size])
            self._note(len(taken), len(taken))
            count -= len(taken)

    def _run_together(self, sequences: Sequence[MemberSequence], slots: Sequence[Slot], count: int) -> torch.Tensor:
        """Runs the remaining pending ids of all sequences."""
        new = sum(len(sequence.take_pending()) for sequence in sequences)
        texts = {slot: sequence.ids for sequence, slot in zip(sequences, slots, strict=True)}
        keep = min(count, max(sequence.kept_tail for sequence in sequences))
        run, logits = self._forward.run(texts, count, keep)
        logits = logits[:, :, : self._size]  # [slots, at most KEPT_TAIL, vocabulary]
        self._note(new, len(run) * count)
        lines = [slot.index - run[0].index for slot in slots]
        for sequence, line in zip(sequences, lines, strict=True):
            sequence.keep_logits(logits[line])
        last = logits[:, -1]
        if lines != list(range(len(run))):
            last = last[torch.tensor(lines, device=last.device)]
        return last.float()

    def _note(self, new: int, run: int) -> None:
        self._work.forwards += 1
        self._work.ids_run += new
        self._work.ids_rerun += run - new


def _is_asked_again(ids: Sequence[int], shared: int) -> bool:
    """Whether the last text holds a whole prompt, which is then read again: so the answer is the same to the last bit.

    Args:
        ids: The prompt.
        shared: Number of its ids that begin the last text.
    """
    return shared >= len(ids) - KEPT_TAIL
