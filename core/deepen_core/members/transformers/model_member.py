"""What members of all kinds say of their `transformers` model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from deepen_core.members.base import MemberDescription, Work
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers.output_layer import prepare


class ModelMember:
    """A loaded `transformers` model with its tokenizer.

    Args:
        name: Its name in reports.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        context_window: In its own tokens.

    Attributes:
        work: Counts of the work done.
        vocabulary_size: See `Member.vocabulary_size`: one logit per embedding; logits beyond it are not tokens.
    """

    def __init__(self, name: str, model: Any, tokenizer: MemberTokenizer, context_window: int) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.context_window = context_window
        self.work = Work()
        embeddings, output_layer = len(self._embedding_matrix()), model.get_output_embeddings()
        # Some models that see have embeddings beyond their logits, for the places of an image.
        self.vocabulary_size = min(embeddings, getattr(output_layer, "out_features", embeddings))
        self._restore: Callable[[], None] | None = None if output_layer is None else prepare(output_layer)

    def close(self) -> None:
        """See `Closes.close`: leaves the model as it was given."""
        if self._restore is not None:
            self._restore()
            self._restore = None

    @property
    def device(self) -> torch.device:
        """The device of its ids and logits: the first of several."""
        device = self.model.device
        if device.type == "meta":  # offloaded
            device = next(weights.device for weights in self.model.parameters() if weights.device.type != "meta")
        assert isinstance(device, torch.device)
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in."""
        dtype = self.model.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def embeddings(self) -> torch.Tensor:
        """Input embeddings [vocabulary, width]."""
        return self._embedding_matrix()[: self.vocabulary_size]

    def _embedding_matrix(self) -> torch.Tensor:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def describe(self) -> MemberDescription:
        """See `Member.describe`."""
        return MemberDescription(type(self.model).__name__, self.model.num_parameters())
