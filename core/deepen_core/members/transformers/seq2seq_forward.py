"""Runs texts of different lengths, after prompts of different lengths, in one forward of an encoder-decoder model.

A decoder numbers its positions by the length of its cache, which is one number for all texts of a batch. So a forward
starts at the same position in every text, wherever the first of them has new ids: texts that are further run their last
ids again, and what follows the end of a shorter one is overwritten later. Only the encoder's lengths are masked.

Shapes: ids [texts, count]; keys and values of the decoder's own ids [slots, heads, positions, width], and those of the
encoder's ids, which every layer computes once per prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from deepen_core.members.sequence import KEPT_TAIL
from deepen_core.members.transformers.encoder_decoder import EncoderDecoder
from deepen_core.members.transformers.kv_cache import RaggedCache, Slot


class Seat:
    """The caches of one sequence.

    Attributes:
        text: Of the ids that the decoder has run.
        source: Of the ids that the encoder has read.
    """

    def __init__(self, text: Slot, source: Slot) -> None:
        self.text = text
        self.source = source

    @property
    def held(self) -> bool:
        """Whether the caches still have it."""
        return self.text.held and self.source.held

    def free(self) -> None:
        """See `SequenceCache.free`."""
        self.text.free()
        self.source.free()


class Seq2SeqForward:
    """Forwards of a model over any of its sequences.

    Args:
        model: The model.
    """

    def __init__(self, model: EncoderDecoder) -> None:
        self._model = model
        self._texts = RaggedCache()
        self._sources = RaggedCache()
        self._like = torch.zeros(1, 1, 1)  # of the encoder's states

    @contextmanager
    def busy(self) -> Iterator[None]:
        """See `RaggedCache.busy`."""
        with self._texts.busy(), self._sources.busy():
            yield

    def forget(self) -> None:
        """See `RaggedCache.forget`."""
        self._texts.forget()
        self._sources.forget()

    def take(self) -> Seat:
        """Returns the caches of a new sequence."""
        return Seat(self._texts.take(), self._sources.take())

    def share(self, seat: Seat, source: Sequence[int]) -> bool:
        """Copies what the encoder made of a prompt from another sequence, and returns whether there is one."""
        wanted = list(source)
        other = next((slot for slot in self._sources.slots if slot.ids == wanted), None)
        if other is not None:
            self._sources.copy(other, seat.source, len(wanted))
        return other is not None

    def begin(self, sources: Mapping[Seat, Sequence[int]], texts: Mapping[Seat, Sequence[int]]) -> torch.Tensor:
        """Encodes prompts, and runs texts after them from their first id on.

        Args:
            sources: The ids of each prompt.
            texts: The ids of each text, of the same sequences in the same order.

        Returns:
            Logits after the last two ids of each text, [texts, KEPT_TAIL, vocabulary]; the same twice if it has only
            one.
        """
        states, mask = self._model.encode(list(sources.values()))
        self._like = states.new_zeros(1, 1, 1)
        self._sources.aim_at([seat.source for seat in sources], 0, states.shape[1])
        logits = self._run(texts, 0, self._sources, states, mask)
        for seat, source in sources.items():
            seat.source.ids = list(source)
        return logits

    def go_on(self, texts: Mapping[Seat, Sequence[int]], start: int) -> torch.Tensor:
        """Runs texts from a position on, after prompts that were encoded.

        Args:
            texts: The ids of each text, whose cache must hold those before `start`.
            start: The first position to run, at least one before the end of every text.

        Returns:
            See `begin`.
        """
        slots = [seat.source for seat in texts]
        lengths = [len(slot.ids) for slot in slots]
        self._sources.aim_at(slots, 0, max(lengths))
        held = DynamicCache()
        held.layers = [_layer(keys, values) for keys, values in self._sources.seen()]
        width = self._like.shape[-1]
        states = self._like.expand(len(slots), max(lengths), width)  # only looked at for its shape
        return self._run(texts, start, held, states, self._model.source_mask(lengths))

    def _run(
        self,
        texts: Mapping[Seat, Sequence[int]],
        start: int,
        cross: RaggedCache | DynamicCache,
        states: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        for seat in texts:
            del seat.text.ids[start:]  # until the forward has succeeded
        ids = self._model.batch([text[start:] for text in texts.values()])
        self._texts.aim_at([seat.text for seat in texts], start, ids.shape[1])
        last = torch.tensor([len(text) - start - 1 for text in texts.values()], device=ids.device)
        places = torch.stack([(last - back).clamp_min(0) for back in reversed(range(KEPT_TAIL))], dim=1)
        cache = EncoderDecoderCache(self._texts, cross)
        logits = self._model.decode(ids, states, mask, cache=cache, places=places)
        for seat, text in texts.items():
            seat.text.ids = list(text)
        return logits


def _layer(keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    """Returns a layer of a cache that holds these, without copying them."""
    layer = DynamicLayer()
    layer.keys, layer.values = keys, values
    layer.dtype, layer.device = keys.dtype, keys.device
    layer.is_initialized = True
    return layer
