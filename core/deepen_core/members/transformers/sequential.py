"""Runs sequences one at a time: for models, and for text lengths, that do not allow a shared forward."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from deepen_core.members.base import Work
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence
from deepen_core.members.transformers.given_tokens import ReadText, logprobs_in_piece, pieces, places_kept
from deepen_core.members.transformers.kv_cache import cache_option

_TEXTS_KEPT = 2  # prompts of a batch that begin alike may be cut at two places, one step apart


class OwnCache:
    """The key/value cache of one sequence.

    It keeps every position, even for models with sliding windows (their masks apply the window), so that it can always
    be shortened.

    Args:
        owner: The runner that fills it; a cache filled by another runner cannot be continued.
    """

    def __init__(self, owner: SequentialRunner) -> None:
        self.owner = owner
        self.held = DynamicCache()

    def free(self) -> None:
        """See `SequenceCache.free`."""
        self.held = DynamicCache()


def shortened(cache: DynamicCache, length: int) -> DynamicCache:
    """Returns the cache without the positions from `length` on."""
    surplus = cache.get_seq_length() - length
    if surplus > 0:
        cache.crop(-surplus)
    return cache


class SequentialRunner:
    """Runs each sequence by itself.

    Args:
        model: The model.
        vocabulary_size: Logits beyond it are not tokens.
        work: Counts what is run.
        keeps_cache: Whether a sequence can be continued and shortened. If not, its whole text is run each time: slow,
            but correct.
        in_pieces: Whether the start of a text can be run without its end.
        resets: Whether the model must see a short text first, to forget the length of the last one.
    """

    def __init__(
        self,
        model: Any,
        vocabulary_size: int,
        work: Work,
        *,
        keeps_cache: bool,
        in_pieces: bool = True,
        resets: bool = False,
    ) -> None:
        self._model = model
        self._size = vocabulary_size
        self._work = work
        self._keeps_cache = keeps_cache
        self._in_pieces = in_pieces and keeps_cache
        self._resets = resets
        self._texts: list[tuple[ReadText, DynamicCache]] = []  # the last one at the end
        self._cache_option = cache_option(model)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        return torch.stack([self._run(sequence, self._cache(sequence), None)[-1] for sequence in sequences]).float()

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """See `Member.prefill`."""
        if not self._in_pieces:
            return 0
        cache = self._cache(sequence)
        count = max(0, min(limit, sequence.pending - KEPT_TAIL))
        if count:
            self._run(sequence, cache, count)
        return count

    def logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """See `Member.token_logprobs`: in one forward, or in several if its logits would not fit into 256 MiB."""
        return self._read_from(0, ids, start, DynamicCache() if self._in_pieces else None)

    def prompt_logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """See `ReadsAhead.prompt_logprobs`: the last two texts are kept, with their keys and values.

        A text that goes on like one of them takes its place.
        """
        if not self._in_pieces:
            return self.logprobs(ids, start)
        lengths = [text.shared(ids[:-1], start) for text, _ in self._texts]
        length = max(lengths, default=0)
        text, cache = ReadText([], start, []), DynamicCache()
        if length:  # taken out: a forward that fails may have written to some layers
            text, cache = self._texts.pop(lengths.index(length))
        first = max(0, length - 1)  # the last shared id is run again: the next one is looked up after it
        cache = shortened(cache, first)
        found = [*text.logprobs[: max(0, length - start)], *self._read_from(first, ids, max(start, length), cache)]
        self._texts = [*self._texts[1 - _TEXTS_KEPT :], (ReadText(list(ids), start, found), cache)]
        self._work.ids_copied += first
        return found

    def forget(self) -> None:
        """Drops the texts that were read last."""
        self._texts = []

    def _read_from(self, first: int, ids: Sequence[int], start: int, cache: DynamicCache | None) -> list[float]:
        """Returns log-probabilities (nats) of `ids[start:]`, of which the first ones are in the cache already."""
        found: list[float] = []
        for piece in pieces(first, len(ids), self._size) if cache is not None else [range(len(ids))]:
            logits = self._forward(ids[piece.start : piece.stop], cache, places_kept(piece, start))
            found += logprobs_in_piece(logits, ids, piece, start)
        return found

    def _cache(self, sequence: MemberSequence) -> OwnCache:
        """Returns the cache of the sequence, emptied if it cannot be continued."""
        if not (self._keeps_cache and isinstance(sequence.cache, OwnCache) and sequence.cache.owner is self):
            sequence.release()
            sequence.cache = OwnCache(self)
            sequence.cached = 0
        return sequence.cache

    def _run(self, sequence: MemberSequence, cache: OwnCache, limit: int | None) -> torch.Tensor:
        """Runs pending ids and returns the logits [at most KEPT_TAIL, vocabulary] at the last of them."""
        pending = sequence.take_pending(limit)
        held = shortened(cache.held, sequence.cached - len(pending)) if self._keeps_cache else None
        logits = self._forward(pending, held, sequence.kept_tail)
        sequence.keep_logits(logits)
        return logits

    def _forward(self, ids: Sequence[int], cache: DynamicCache | None, keep: int) -> torch.Tensor:
        """Runs ids after those in the cache, and returns the logits [at most keep, vocabulary] at the last of them."""
        batch = torch.tensor([ids], device=self._model.device)
        options = {"logits_to_keep": keep} if self._keeps else {}
        if self._resets:
            self._model(batch[:, :1], use_cache=False, **options)
        held = {} if cache is None else {self._cache_option: cache}
        logits: torch.Tensor = self._model(batch, use_cache=cache is not None, **held, **options).logits
        self._work.forwards += 1
        self._work.ids_run += len(ids)
        return logits[0, -keep:, : self._size]
