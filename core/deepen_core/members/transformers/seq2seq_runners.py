"""Runs the sequences of an encoder-decoder model: together, or each by itself and whole.

1. Give each new sequence its caches, and what the encoder made of the same prompt for another sequence if there is one.
2. Encode the other prompts, those of similar lengths together, and run their decoders for the first time.
3. Run what is pending of the other sequences, in the groups that are cheapest: see `seq2seq_forward`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from deepen_core.members.base import Work
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence
from deepen_core.members.transformers.encoder_decoder import EncoderDecoder
from deepen_core.members.transformers.ragged import overhead
from deepen_core.members.transformers.seq2seq_forward import Seat, Seq2SeqForward


def source_of(sequence: MemberSequence) -> tuple[int, ...]:
    """Returns what the encoder reads of a sequence."""
    assert sequence.source is not None, "read by the reader of an encoder-decoder model"
    return sequence.source


class TogetherRunner:
    """Keeps sequences in common caches and runs them together.

    Args:
        model: The model.
        device: Of the model.
        work: Counts what is run.
    """

    def __init__(self, model: EncoderDecoder, device: torch.device, work: Work) -> None:
        self._forward = Seq2SeqForward(model)
        self._overhead = overhead(device)
        self._work = work

    def forget(self) -> None:
        """See `Forgets.forget`."""
        self._forward.forget()

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        last: dict[MemberSequence, torch.Tensor] = {}
        with self._forward.busy():
            seats = {sequence: self._seat(sequence) for sequence in sequences}
            new = [sequence for sequence in sequences if not self._is_encoded(sequence, seats[sequence])]
            first = list({source_of(sequence): sequence for sequence in new}.values())
            for group in groups(first, lambda sequence: (0, len(source_of(sequence))), self._overhead):
                seated = _in_order(group, seats)
                begin = partial(self._forward.begin, {seat: source_of(s) for s, seat in seated.items()})
                last |= self._run(seated, 0, begin)
                self._work.ids_run += sum(len(source_of(sequence)) for sequence in group)
            rest = [sequence for sequence in sequences if sequence not in last]
            for sequence in rest:
                self._is_encoded(sequence, seats[sequence])  # by now
            for group in groups(rest, _span, self._overhead):
                start = min(_span(sequence)[0] for sequence in group)
                last |= self._run(_in_order(group, seats), start, partial(self._forward.go_on, start=start))
        return torch.stack([last[sequence] for sequence in sequences]).float()

    def _seat(self, sequence: MemberSequence) -> Seat:
        if not (isinstance(sequence.cache, Seat) and sequence.cache.held):
            sequence.release()
            sequence.cache = self._forward.take()
            # A sequence that is garbage-collected without `release` frees its caches too.
            weakref.finalize(sequence, sequence.cache.free).atexit = False
        sequence.cached = min(sequence.cached, len(sequence.cache.text.ids))
        return sequence.cache

    def _is_encoded(self, sequence: MemberSequence, seat: Seat) -> bool:
        """Whether the prompt of a sequence was encoded, for it or for another one."""
        if sequence.shares and not seat.source.ids and self._forward.share(seat, source_of(sequence)):
            self._work.ids_copied += len(source_of(sequence))
        return bool(seat.source.ids)

    def _run(
        self, seats: Mapping[MemberSequence, Seat], start: int, run: Callable[[Mapping[Seat, list[int]]], torch.Tensor]
    ) -> dict[MemberSequence, torch.Tensor]:
        """Runs sequences from a position on, and returns the logits [vocabulary] after each."""
        new = sum(len(sequence.take_pending()) for sequence in seats)
        logits = run({seat: sequence.ids for sequence, seat in seats.items()})
        for sequence, found in zip(seats, logits, strict=True):
            sequence.keep_logits(found[-min(KEPT_TAIL, len(sequence.ids) - start) :])
        self._work.forwards += 1
        self._work.ids_run += new
        self._work.ids_rerun += sum(len(sequence.ids) - start for sequence in seats) - new
        return dict(zip(seats, logits[:, -1], strict=True))


class WholeRunner:
    """Runs the whole text of each sequence by itself for every token; slow, but right for any model.

    Args:
        model: The model.
        work: Counts what is run.
    """

    def __init__(self, model: EncoderDecoder, work: Work) -> None:
        self._model = model
        self._work = work

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        return torch.stack([self._run(sequence)[-1] for sequence in sequences]).float()

    def _run(self, sequence: MemberSequence) -> torch.Tensor:
        if not isinstance(sequence.cache, _Encoded):
            sequence.release()
            sequence.cache = _Encoded(self._model.encode([source_of(sequence)])[0])
            self._work.ids_run += len(source_of(sequence))
        sequence.cached = 0
        ids = self._model.batch([sequence.take_pending()])
        logits = self._model.decode(ids, sequence.cache.states)[0, -KEPT_TAIL:]
        self._work.forwards += 1
        self._work.ids_run += ids.shape[1]
        sequence.keep_logits(logits)
        return logits


class _Encoded:
    """What the encoder made of one prompt."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states

    def free(self) -> None:
        """See `SequenceCache.free`."""
        self.states = self.states.new_zeros(0)


def _in_order(group: Sequence[MemberSequence], seats: Mapping[MemberSequence, Seat]) -> dict[MemberSequence, Seat]:
    """Returns sequences in the order of their caches: adjacent ones are read without a copy."""
    return {s: seats[s] for s in sorted(group, key=lambda sequence: seats[sequence].text.index)}


def _span(sequence: MemberSequence) -> tuple[int, int]:
    """Returns the position of the first pending id of a sequence, and its length."""
    return len(sequence.ids) - sequence.pending, len(sequence.ids)


def groups(
    sequences: Sequence[MemberSequence], span: Callable[[MemberSequence], tuple[int, int]], forward: int
) -> list[list[MemberSequence]]:
    """Returns the cheapest division of sequences into forwards.

    All sequences of a forward run from where the first one starts to where the last one ends.

    Args:
        sequences: The sequences.
        span: Where a sequence starts and ends.
        forward: What a forward costs beside its ids, in ids.
    """
    spans = {sequence: span(sequence) for sequence in sequences}
    ordered = sorted(sequences, key=lambda sequence: spans[sequence])
    best: list[tuple[int, int]] = [(0, 0)]  # of the first sequences: their cost, and where their last forward begins
    for stop in range(1, len(ordered) + 1):
        end, found = 0, []
        for begin in range(stop - 1, -1, -1):
            start, reach = spans[ordered[begin]]
            end = max(end, reach)
            found.append((best[begin][0] + forward + (stop - begin) * (end - start), begin))
        best.append(min(found))
    divided, stop = [], len(ordered)
    while stop:
        begin = best[stop][1]
        divided.append(ordered[begin:stop])
        stop = begin
    return divided[::-1]
