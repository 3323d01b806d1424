"""What a member reads and writes, by its tokenizer and configuration: everything of it but the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from deepen_core.chat.prompt_form import PromptForm
from deepen_core.config import MemberConfig
from deepen_core.errors import DeepenError, TokenizerError, brief, is_failure
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers.checkpoint import declared_window
from deepen_core.members.transformers.generation_settings import GenerationSettings
from deepen_core.members.transformers.languages import language_id, set_source_language
from deepen_core.members.transformers.pretrained import is_encoder_decoder

_NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class TextSide:
    """A member without its model.

    Attributes:
        tokenizer: Its tokenizer.
        context_window: In its own tokens; the decoder's in an encoder-decoder model.
        source_window: Of the encoder in such a model; None in others.
        ruled_out: Ids that no answer contains.
    """

    tokenizer: MemberTokenizer
    context_window: int
    source_window: int | None
    ruled_out: Sequence[int]

    @classmethod
    def of(
        cls,
        config: MemberConfig,
        place: str,
        tokenizer: Any,
        model_config: Any,
        settings: GenerationSettings,
        max_window: int | None,
    ) -> Self:
        """Reads it.

        Args:
            config: The member.
            place: What errors call the model.
            tokenizer: Its `transformers` tokenizer; the source language is set in it.
            model_config: The model's configuration.
            settings: How its answers begin and end.
            max_window: Caps its context window.

        Raises:
            ConfigurationError: If a language or the decoder's first token is unknown.
            ModelFilesError: If an id in the settings is no id.
            TokenizerError: If the tokenizer cannot be used.
        """
        name = str(config.name)
        start, source_window, ruled_out = None, None, []
        if is_encoder_decoder(model_config):
            set_source_language(tokenizer, config.source_language, place)
            target = config.target_language
            forced = None if target is None else language_id(tokenizer, target, place, "target_language")
            start, ruled_out = settings.decoder_start(forced), settings.ruled_out()
            source_window = _window(config, max_window, model_config, tokenizer, "encoder")
        form = PromptForm(config.prompt, config.system, name)
        stop_ids = settings.stop_ids()
        try:
            described = MemberTokenizer(tokenizer, name, stop_ids, form, start)
        except DeepenError:
            raise
        except BaseException as problem:  # settings of a tokenizer that only its use reads
            if not is_failure(problem):
                raise
            raise TokenizerError(
                f"The tokenizer of {place} cannot be used ({brief(problem)}): fetch its files again, or try it alone "
                "with AutoTokenizer.from_pretrained."
            ) from problem
        window = _window(config, max_window, model_config, tokenizer, None if source_window is None else "decoder")
        return cls(described, window, source_window, ruled_out)


class TextDescribed:
    """What all `DescribedMember`s say that hold a member's options and its text side."""

    config: MemberConfig
    text: TextSide

    @property
    def name(self) -> str:
        """The member's name."""
        return str(self.config.name)

    @property
    def tokenizer(self) -> MemberTokenizer:
        """The member's tokenizer."""
        return self.text.tokenizer

    @property
    def context_window(self) -> int:
        """See `DescribedMember.context_window`."""
        return self.text.context_window


def _window(config: MemberConfig, most: int | None, model_config: Any, tokenizer: Any, part: str | None = None) -> int:
    """Returns a window in tokens: the member's own option, else what the configuration or the tokenizer declares.

    Args:
        config: The member.
        most: Caps it.
        model_config: The model's configuration.
        tokenizer: A `transformers` tokenizer.
        part: "encoder" or "decoder", for one of the two windows of an encoder-decoder model.
    """
    text_config = model_config.get_text_config(**({} if part is None else {part: True}))
    declared = declared_window(text_config.to_dict(), part or "")
    window = config.context_window or declared or int(min(tokenizer.model_max_length, _NO_LIMIT))
    return window if most is None else min(window, most)
