"""Encodes prompts for encoder-decoder models: the encoder reads the prompt, and the answer is a text of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deepen_core.chat.messages import Message
from deepen_core.chat.prompt_encoder import MemberPrompt, PromptReader
from deepen_core.chat.prompt_form import PromptForm, text_of
from deepen_core.errors import ConfigurationError
from deepen_core.tokenization.fast_tokenizer import Backend


class SourceReader(PromptReader):
    """Reads prompts for one encoder-decoder member.

    A text is what the encoder reads, with the ids that the tokenizer puts around every text. Of a conversation it reads
    the last message of the user, unless the member has a chat template, or a form that says otherwise. If the answer is
    begun already, the decoder goes on from its beginning.

    Args:
        tokenizer: The member's `transformers` tokenizer.
        backend: The tokenizer's private copy.
        name: The member's name, for error messages.
        form: In which the member is shown prompts.
        start: The ids that the decoder starts every answer with.

    Raises:
        ConfigurationError: If the form has an instruction that the member cannot read.
    """

    def __init__(
        self, tokenizer: Any, backend: Backend, name: str, form: PromptForm | None, start: Sequence[int]
    ) -> None:
        super().__init__(tokenizer, backend, name, form)
        self._decoder_start = list(start)
        if self._chat is None and self.form.system is not None:
            raise ConfigurationError(
                f"Member {name!r} has a system instruction and no chat template that would show it: put it into the "
                "text that its encoder reads, such as MemberConfig(prompt='Answer briefly: {prompt}')."
            )

    @property
    def label(self) -> str:
        """See `PromptReader.label`; it tells languages apart, which are ids around a text."""
        return f"{super().label} between {self.start_ids} and {self._end_ids}, answered after {self._decoder_start}"

    @property
    def has_chat_template(self) -> bool:
        """Whether the member can encode a conversation: its last message is a text."""
        return True

    def read_text(self, text: str, *, control_tokens: bool = False, window: int | None = None) -> MemberPrompt:
        """See `PromptReader.read_text`; the text goes to the encoder."""
        return self._as_source(super().read_text(text, control_tokens=control_tokens, window=window))

    def _begun(self, prompt: MemberPrompt, text: str) -> MemberPrompt:
        """See `PromptReader._begun`; the beginning of an answer is the decoder's, and the encoder does not read it."""
        return super()._begun(self._as_source(prompt), text)

    def _read_conversation(
        self, messages: Sequence[Message], options: Mapping[str, Any] | None, window: int | None = None
    ) -> MemberPrompt:
        if self._chat is not None:
            return super()._read_conversation(messages, options, window)
        asked = [message for message in messages if message["role"] == "user"] or messages
        text = text_of(asked[-1])
        self._check_fits(len(text), window)
        return self._read_shown(text, cut=False, control_tokens=False)

    def _as_source(self, read: MemberPrompt) -> MemberPrompt:
        backend = read.backend or self._plain
        ids = read.ids + (backend.encode_inside(read.text) if read.inside else backend.encode(read.text))
        end = [] if self._end_ids and ids[-len(self._end_ids) :] == self._end_ids else self._end_ids
        return replace(
            read,
            ids=list(self._decoder_start),
            text="",
            inside=False,
            backend=None,
            cut=False,
            source=(*ids, *end),
        )
