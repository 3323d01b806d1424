"""Members of models and tokenizers that the caller has loaded already."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from deepen_core.config import MemberConfig
from deepen_core.errors import ConfigurationError
from deepen_core.members.transformers.generation_settings import GenerationSettings
from deepen_core.members.transformers.loaded import loaded_member
from deepen_core.members.transformers.model_member import ModelMember
from deepen_core.members.transformers.pretrained import check_kind
from deepen_core.members.transformers.text_side import TextSide


def given_member(config: MemberConfig, model: Any, tokenizer: Any, max_window: int | None) -> ModelMember:
    """Returns the member of a loaded model.

    Args:
        config: Its name and how it is shown prompts.
        model: The model, in evaluation mode.
        tokenizer: Its `transformers` tokenizer.
        max_window: Caps its context window.

    Raises:
        ConfigurationError: If it is not a model of `transformers` that writes text, or is in training mode.
        ModelFilesError: If an id in its generation configuration is no id.
        TokenizerError: If the tokenizer cannot be used.
    """
    name = str(config.name)
    if not isinstance(model, PreTrainedModel):
        way_out = "give one, or implement deepen_core.members.base.Member and use from_members"
        if hasattr(model, "merge_and_unload"):
            way_out = "merge the adapter into it first, with merge_and_unload()"
        kind = type(model).__name__
        raise ConfigurationError(f"Member {name!r} is a {kind}, not a model of transformers: {way_out}.")
    if model.training:
        raise ConfigurationError(f"Member {name!r} is in training mode, in which answers are random: call its eval().")
    if model.get_output_embeddings() is None:
        raise ConfigurationError(
            f"Member {name!r} is a {type(model).__name__}, which gives no probabilities of tokens: load it with "
            "AutoModelForCausalLM or AutoModelForSeq2SeqLM."
        )
    check_kind(name, model.config, config, trusted=True)
    told: Any = model.generation_config
    given = None if told is None else {key: value for key, value in told.to_dict().items() if value is not None}
    settings = GenerationSettings(name, given, model.config)
    return loaded_member(name, model, TextSide.of(config, name, tokenizer, model.config, settings, max_window))
