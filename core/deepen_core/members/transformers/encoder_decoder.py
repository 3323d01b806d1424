"""The two halves of an encoder-decoder model: what reads a prompt, and what writes after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutput

from deepen_core.members.transformers.kv_cache import cache_option


class EncoderDecoder:
    """Runs the halves of a model one by one.

    Args:
        model: The model, in evaluation mode.
        vocabulary_size: Logits beyond it are not tokens.
        ruled_out: Ids that no answer contains.
    """

    def __init__(self, model: Any, vocabulary_size: int, ruled_out: Sequence[int] = ()) -> None:
        self._model = model
        self._encoder = model.get_encoder()
        self._cache_option = cache_option(model)
        self._size = vocabulary_size
        self._ruled_out = [i for i in ruled_out if i < vocabulary_size]
        self._output: Any = BaseModelOutput
        self._padding = int(getattr(model.config.get_text_config(decoder=True), "pad_token_id", None) or 0)

    def encode(self, sources: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Runs the encoder.

        Args:
            sources: The ids of each prompt.

        Returns:
            Its states [sources, ids, width], and where they belong to a source, int64 [sources, ids]; None if
            everywhere.
        """
        mask = self.source_mask([len(source) for source in sources])
        found = self._encoder(input_ids=self.batch(sources), attention_mask=mask, return_dict=True)
        self._output = type(found)  # a decoder may look for more in it than states, such as those of routers
        states: torch.Tensor = found.last_hidden_state
        if mask is not None:  # whatever an encoder says of padding must be a number, or no mask cancels it
            states = states.masked_fill(mask[..., None] == 0, 0.0)
        return states, mask

    def source_mask(self, lengths: Sequence[int]) -> torch.Tensor | None:
        """Returns where the states of sources of these lengths are, see `encode`."""
        if min(lengths) == max(lengths):
            return None
        ends = torch.tensor(lengths, device=self._model.device)
        return (torch.arange(max(lengths), device=ends.device) < ends[:, None]).long()

    def batch(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Returns texts as one tensor [texts, ids], padded at their ends."""
        width = max(map(len, texts))
        padded = [[*text, *[self._padding] * (width - len(text))] for text in texts]
        return torch.tensor(padded, device=self._model.device)

    def decode(
        self,
        ids: torch.Tensor,
        states: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        cache: Cache | None = None,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs the decoder.

        Args:
            ids: New ids [texts, ids]; what follows a text in its line does not change it.
            states: See `encode`.
            mask: See `encode`.
            cache: Of the ids before; None if there are none.
            places: Where logits are wanted [texts, places]; everywhere if None.

        Returns:
            Logits [texts, places, vocabulary].
        """
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options[self._cache_option] = cache
        with self._only_at(places, ids.shape[1]):
            logits: torch.Tensor = self._model(
                encoder_outputs=self._output(last_hidden_state=states),
                attention_mask=mask,
                decoder_input_ids=ids,
                **options,
            ).logits[..., : self._size]
        if places is not None and logits.shape[1] == ids.shape[1]:
            logits = logits.take_along_dim(places[..., None], dim=1)
        if self._ruled_out:
            ruled_out = torch.tensor(self._ruled_out, device=logits.device)
            logits = logits.index_fill(-1, ruled_out, torch.finfo(logits.dtype).min)
        return logits

    @contextmanager
    def _only_at(self, places: torch.Tensor | None, count: int) -> Iterator[None]:
        """Gives the head only the states at some places: with a large vocabulary it costs as much as all layers."""
        head = self._model.get_output_embeddings()
        if places is None or head is None or places.shape[1] >= count:
            yield
            return

        def chosen(_head: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
            [states] = inputs
            return states.take_along_dim(places[..., None], dim=1) if states.dim() == 3 else None

        hook = head.register_forward_pre_hook(chosen)
        try:
            yield
        finally:
            hook.remove()
