"""The text side of a member: its tokenizer and everything derived from it, without the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch

from deepen_core.chat.prompt_encoder import PromptReader
from deepen_core.chat.prompt_form import PromptForm
from deepen_core.chat.source_reader import SourceReader
from deepen_core.members.opening import first_ids, ids_after_blank
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.retokenizer import Boundaries
from deepen_core.tokenization.vocabulary import Vocabulary

# A little of every kind of text that members meet, to compare the lengths of their tokens.
SAMPLE_TEXT = (
    'The old library opens at nine. Mira asked, "How many books are there?" and the clerk said: about 48,000.\n'
    "def mean(values):\n    return sum(values) / len(values)\n"
    "Heat the water to 80 degrees; then add two spoons of tea, wait for three minutes, and serve.\n"
)


class MemberTokenizer:
    """A member's tokenizer with what is derived from it.

    Args:
        tokenizer: A `transformers` fast tokenizer.
        name: The member's name, for error messages.
        stop_ids: Ids that end a text according to the model's generation config.
        form: In which the member is shown prompts; as they are if None.
        decoder_start: The ids that an answer of an encoder-decoder model starts with; None for other models.

    Attributes:
        backend: Encodes plain text.
        vocabulary: Bytes of every token.
        boundaries: Where a text may be cut.
        reader: Encodes prompts.
        sample_ids: The ids of a sample text.
        bytes_per_token: Mean length of its tokens on that text, in bytes.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        stop_ids: Iterable[int] = (),
        form: PromptForm | None = None,
        decoder_start: Sequence[int] | None = None,
    ) -> None:
        self.backend = Backend(tokenizer)
        self.vocabulary = Vocabulary.from_tokenizer(tokenizer, stop_ids, self.backend)
        self.boundaries = Boundaries(self.backend, self.vocabulary.kind)
        self.reader = (
            PromptReader(tokenizer, self.backend, name, form)
            if decoder_start is None
            else SourceReader(tokenizer, self.backend, name, form, decoder_start)
        )
        self.backend.forget_pieces()
        self.sample_ids = self.backend.encode(SAMPLE_TEXT)
        self._first_ids: dict[bool, torch.Tensor] = {}
        self.bytes_per_token = len(SAMPLE_TEXT.encode()) / max(1, len(self.sample_ids))

    def first_ids(self, *, blank: bool) -> torch.Tensor:
        """Returns what each token counts for at the beginning of an answer, see `opening.first_ids`."""
        if blank not in self._first_ids:
            self._first_ids[blank] = first_ids(self.vocabulary, blank=blank)
        return self._first_ids[blank]

    @cached_property
    def ids_after_blank(self) -> torch.Tensor:
        """What each token counts for where its first blank is in the text already, see `opening.ids_after_blank`."""
        return ids_after_blank(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS; control tokens in it are plain text."""
        return self.backend.encode(text)
