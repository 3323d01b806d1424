"""A model's configuration and tokenizer as `transformers` loads them, and what it lacks where it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from deepen_core.chat.template import given_template
from deepen_core.config import MemberConfig
from deepen_core.errors import ConfigurationError, DeepenError, ModelFilesError, TokenizerError, brief, is_failure
from deepen_core.members.transformers.blueprint import Blueprint
from deepen_core.members.transformers.json_file import read_object
from deepen_core.members.transformers.requirements import (
    check_packages,
    check_quantisation,
    missing_package,
    own_code,
)
from deepen_core.members.transformers.source import ModelSource, find_tokenizer

_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*")
_SHARE = 10  # a tokenizer with less than a tenth of its model's tokens has found none of them


def load_config(config: MemberConfig, source: ModelSource) -> tuple[Any, Blueprint | None]:
    """Loads a model's configuration, and checks that the model can be a member on this machine.

    Returns:
        The configuration, and what it describes, if the model can be built without memory.

    Raises:
        ConfigurationError: If the model does not predict the next token, lacks something to be loaded, or is given
            `model_kwargs` that are part of its configuration.
        ModelFilesError: If the configuration cannot be used, or the weights are in another format.
    """
    given, trusted = read_object(source.folder / "config.json"), config.trust_remote_code
    try:
        model_config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trusted)
    except Exception as problem:  # a wrong value in it raises anything that the model's own checks raise
        raise _config_error(source.place, given, problem, trusted=trusted) from problem
    if inside := sorted(config.model_kwargs.keys() & model_config.to_dict().keys() - {"quantization_config"}):
        raise ConfigurationError(
            f"model_kwargs cannot set {' or '.join(inside)} of {source.place}: that is part of its configuration. "
            "Change it in a copy of its config.json."
        )
    check_kind(source.place, model_config, config, trusted=trusted)
    check_quantisation(source.place, given, model_config, trusted=trusted)
    kind = auto_class(model_config)
    return model_config, check_packages(source.place, given, model_config, kind, trusted=trusted)


def load_tokenizer(config: MemberConfig, source: ModelSource, model_config: Any) -> Any:
    """Loads a model's tokenizer.

    Raises:
        ConfigurationError: If it comes with code of its own, which may not be run.
        ModelFilesError: If tokenizer.json is not JSON.
        TokenizerError: If it cannot be loaded, or `transformers` found no vocabulary for it.
    """
    trusted, source = config.trust_remote_code, find_tokenizer(config, source)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trusted)
        if type(tokenizer).__name__ == "MistralCommonBackend":
            # Where mistral-common is installed, it is preferred to tokenizer.json; members need that everywhere.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source.folder)
    except BaseException as problem:  # damaged tokenizer files raise anything that their parser raises
        if not is_failure(problem):
            raise
        raise _tokenizer_error(source, problem, trusted=trusted) from problem
    tokens, wanted = len(tokenizer), getattr(text_config(model_config), "vocab_size", None)
    from_scratch = not (source.folder / "tokenizer.json").is_file()
    if from_scratch and isinstance(wanted, int) and tokens * _SHARE < wanted:
        raise TokenizerError(
            f"The tokenizer of {source.place} has {tokens} tokens where its model has {wanted}: transformers found no "
            f"vocabulary for {type(tokenizer).__name__} in its files. Fetch its tokenizer.json as well."
        )
    if config.chat_template is not None:
        tokenizer.chat_template = given_template(config.chat_template)
    return tokenizer


def _config_error(place: str, given: Mapping[str, Any], problem: Exception, *, trusted: bool) -> DeepenError:
    if not trusted and "trust_remote_code" in str(problem):
        return own_code(place)
    if isinstance(problem, ImportError):
        return missing_package(place, problem)
    kind = given.get("model_type")
    if isinstance(kind, str) and kind not in CONFIG_MAPPING:
        return ModelFilesError(
            f"The configuration of {place} cannot be used: transformers {transformers.__version__} does not know its "
            f"model_type {kind!r}. A newer one may: pip install --upgrade transformers."
        )
    return ModelFilesError(
        f"The configuration of {place} cannot be used ({brief(problem)}): correct config.json or fetch it again."
    )


def is_encoder_decoder(model_config: Any) -> bool:
    """Whether an encoder of the model reads the prompt, and its decoder writes a text of its own."""
    return bool(getattr(model_config, "is_encoder_decoder", False))


def text_config(model_config: Any) -> Any:
    """Returns the part of a configuration that is about the text that the model writes."""
    return model_config.get_text_config(decoder=True if is_encoder_decoder(model_config) else None)


def architecture_of(model_config: Any) -> str:
    """Returns the kind of model that a configuration describes, for reports."""
    return ", ".join(getattr(model_config, "architectures", None) or [type(model_config).__name__])


def auto_class(model_config: Any) -> Any:
    """Returns the class of `transformers` that loads a model."""
    if is_encoder_decoder(model_config):
        return AutoModelForSeq2SeqLM
    return AutoModelForImageTextToText if _sees(model_config) else AutoModelForCausalLM


def _sees(model_config: Any) -> bool:
    """Whether a model reads images beside text, and no class of `transformers` loads the rest of it alone."""
    kind = type(model_config)
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING


def check_kind(place: str, model_config: Any, config: MemberConfig, *, trusted: bool) -> None:
    """Rejects models that do not write text after text, and options for models of another kind.

    Args:
        place: What errors call the model.
        model_config: Its configuration.
        config: The member.
        trusted: Whether the model's own code is run.

    Raises:
        ConfigurationError: If it is rejected.
    """
    if is_encoder_decoder(model_config):
        _check_seq2seq(place, model_config, trusted=trusted)
        return
    _check_causal(place, model_config, trusted=trusted)
    if given := [n for n in ("source_language", "target_language") if getattr(config, n) is not None]:
        raise ConfigurationError(
            f"{place} is not an encoder-decoder model ({model_config.model_type}), so {' and '.join(given)} cannot be "
            "set: name languages in the text, such as prompt='Translate to German: {prompt}'."
        )


def _check_seq2seq(place: str, model_config: Any, *, trusted: bool) -> None:
    """Rejects encoder-decoder models whose encoder reads something else than text, such as speech."""
    auto_map = getattr(model_config, "auto_map", None)
    has_code = isinstance(auto_map, dict) and "AutoModelForSeq2SeqLM" in auto_map
    if (trusted and has_code) or type(model_config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return
    if has_code:
        raise own_code(place)
    raise ConfigurationError(
        f"{place} is an encoder-decoder model ({model_config.model_type}) that AutoModelForSeq2SeqLM does not load: "
        "members read text and write text. Choose another one."
    )


def _check_causal(place: str, model_config: Any, *, trusted: bool) -> None:
    """Rejects models that fill gaps: their answers would be noise."""
    kind = model_config.model_type
    auto_map = getattr(model_config, "auto_map", None)
    has_code = isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map
    if trusted and has_code:
        return
    if type(model_config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not _sees(model_config):
        if has_code:
            raise own_code(place)
        raise ConfigurationError(
            f"{place} is not a causal language model ({kind}): members must predict the next token. Choose one that "
            "AutoModelForCausalLM loads."
        )
    # Encoders have a causal class as well, which attends in both directions unless configured as a decoder.
    encoder = type(model_config) in MODEL_FOR_MASKED_LM_MAPPING or kind == "bert-generation"
    decoder = getattr(model_config, "is_decoder", False) or getattr(model_config, "causal", False)
    if encoder and not decoder:
        raise ConfigurationError(
            f"{place} is an encoder ({kind}) that looks at both sides of a token: members must predict the next one. "
            'Choose a causal language model; if this one was trained as such, set "is_decoder": true in its '
            "config.json."
        )


def _tokenizer_error(source: ModelSource, problem: BaseException, *, trusted: bool) -> DeepenError:
    if (source.folder / "tokenizer.json").is_file():
        read_object(source.folder / "tokenizer.json")  # says more if that is no JSON
    elif advice := _sentencepiece_advice(source.folder):
        return TokenizerError(f"The tokenizer of {source.place} {advice}")
    if not trusted and "trust_remote_code" in str(problem):
        return own_code(source.place)
    told = f"The tokenizer of {source.place} cannot be loaded ({brief(problem)})"
    if isinstance(problem, ImportError):
        return TokenizerError(f"{told}. Install what it names.")
    return TokenizerError(f"{told}: fetch its files again, or save it there with tokenizer.save_pretrained(folder).")


def _sentencepiece_advice(folder: Path) -> str:
    """Returns what is missing to read a SentencePiece model, if anything; `transformers` then takes it for another."""
    models = [path.name for path in sorted(folder.glob("*.model")) if path.is_file() and not _is_tiktoken(path)]
    installed = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
    missing = [package for package, there in installed.items() if not there]
    if not (models and missing):
        return ""
    return (
        f"is a SentencePiece model ({models[0]}) without a tokenizer.json, and transformers needs sentencepiece and "
        f"protobuf to read it: pip install {' '.join(missing)}."
    )


def _is_tiktoken(path: Path) -> bool:
    with path.open("rb") as file:
        return _TIKTOKEN_LINE.fullmatch(file.readline(1000)) is not None
