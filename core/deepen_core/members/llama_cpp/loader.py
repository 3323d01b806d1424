"""Loads members from GGUF files; everything cheap is checked before anything heavy is loaded."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig

from deepen_core.config import MemberConfig
from deepen_core.errors import CompatibilityWarning, ConfigurationError, ModelFilesError, TokenizerError
from deepen_core.members.base import WeightBytes
from deepen_core.members.llama_cpp.header import TOKENS, GgufHeader, check_model, read_header
from deepen_core.members.llama_cpp.library import WAY_OUT, Library, find_library, load_library
from deepen_core.members.llama_cpp.member import LlamaCppMember, architecture, storage
from deepen_core.members.llama_cpp.model import LlamaModel
from deepen_core.members.llama_cpp.options import check_options, given_places, most_places
from deepen_core.members.llama_cpp.tokenizer import check_tokenizer, read_tokenizer, stop_ids
from deepen_core.members.llama_cpp.weights import load_weights
from deepen_core.members.model_path import model_path
from deepen_core.members.transformers.generation_settings import GenerationSettings
from deepen_core.members.transformers.pretrained import load_tokenizer
from deepen_core.members.transformers.source import ModelSource
from deepen_core.members.transformers.text_side import TextDescribed, TextSide

if TYPE_CHECKING:
    from deepen_core.members.llama_cpp.dequantised import Dequantised

_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class GgufDescription(TextDescribed):
    """A `DescribedMember`: the file's header and tokenizer are read, its weights are not.

    Attributes:
        config: The member.
        header: The header of its file.
        text: Its tokenizer, and what is derived from it.
        library: llama.cpp.
        device: See `DescribedMember.device`.
    """

    config: MemberConfig
    header: GgufHeader
    text: TextSide
    library: Library
    device: torch.device

    @property
    def architecture(self) -> str:
        """See `DescribedMember.architecture`."""
        return architecture(self.header)

    def weight_bytes(self) -> WeightBytes:
        """See `DescribedMember.weight_bytes`. Weights stay as they are in the file."""
        size = self.header.path.stat().st_size
        return WeightBytes(self.header.parameters, size, size, storage(self.header))

    def check_files(self) -> None:
        """See `DescribedMember.check_files`; the header tells how long the file must be."""
        read_header(self.header.path)

    def load(self, *, progress: bool) -> LlamaCppMember:  # noqa: ARG002 (it takes a second)
        """See `DescribedMember.load`."""
        model = load_weights(self.library, self.header)
        most = most_places(self.config, self.context_window)
        return LlamaCppMember(self.name, model, self.header, self.tokenizer, self.context_window, most)


def describe(
    config: MemberConfig,
    device: str | None,
    dtype: str | None,
    max_window: int | None = None,
    *,
    progress: bool = False,  # noqa: ARG001 (nothing is downloaded)
) -> GgufDescription | Dequantised:
    """Reads a GGUF file's header and tokenizer.

    Args:
        config: The member.
        device: Used if the member is run by `transformers`, for want of llama.cpp.
        dtype: The same.
        max_window: Caps its context window.
        progress: Not used.

    Raises:
        ConfigurationError: For options that do not apply, a missing package, or a model that llama.cpp cannot rewind.
        ModelFilesError: If the file is missing, damaged or not a language model.
        TokenizerError: If its tokenizer cannot be used.
    """
    check_options(config)
    path = model_path(config.model)
    if path.is_dir() or not path.exists():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFilesError(f"{path.absolute()} {found}: give the path of a GGUF file, or a model folder.")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigurationError(f"{path} is a GGUF file, and the package gguf is not installed: {WAY_OUT}.")
    header = read_header(path)
    check_model(header)
    place = find_library()
    if place is None:
        return _dequantised(config, header, device, dtype, max_window)
    library = load_library(place)
    model = LlamaModel(library, path, vocabulary_only=True)
    _check_kind(path, model)
    text = _text_side(config, header, max_window, model)
    check_tokenizer(text.tokenizer, model, config.tokenizer or str(path))
    return GgufDescription(config, header, text, library, torch.device("cpu"))


def _dequantised(
    config: MemberConfig, header: GgufHeader, device: str | None, dtype: str | None, max_window: int | None
) -> Dequantised:
    from deepen_core.members.llama_cpp.dequantised import Dequantised  # noqa: PLC0415 (brings the models' code)

    found = Dequantised.of(config, header, _text_side(config, header, max_window), device, dtype)
    sizes = found.weight_bytes()
    warnings.warn(
        f"{header.path} is run by transformers, since xllamacpp is not installed: its weights take "
        f"{sizes.memory / 2**20:,.0f} MiB as {sizes.dtype} instead of {sizes.files / 2**20:,.0f} MiB. To run it by "
        f"llama.cpp: {WAY_OUT}.",
        CompatibilityWarning,
        stacklevel=2,
    )
    return found


def _check_kind(path: Path, model: LlamaModel) -> None:
    if model.has_encoder or model.has_state:
        why = "an encoder" if model.has_encoder else "a recurrent state, which llama.cpp cannot shorten"
        raise ConfigurationError(f"{path} is a model with {why}: give its folder in transformers format.")


def _text_side(
    config: MemberConfig, header: GgufHeader, max_window: int | None, model: LlamaModel | None = None
) -> TextSide:
    """Reads the tokenizer, the stop ids and the window of a file, or another tokenizer.

    Args:
        config: The member.
        header: The file's header.
        max_window: Caps the window.
        model: llama.cpp's vocabulary, which knows more stop ids.
    """
    place = str(header.path)
    size = header.lengths[TOKENS]
    made: Any = PretrainedConfig()
    made.vocab_size, made.max_position_embeddings = size, header.number("context_length")
    source = ModelSource(place, header.path.parent, local=True, names=())
    tokenizer: Any = None
    if config.tokenizer is None:
        tokenizer = read_tokenizer(header, config.chat_template)
    else:
        tokenizer = load_tokenizer(config, source, made)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= size:
        raise TokenizerError(
            f"The tokenizer of {config.tokenizer or place} has the id {largest}, and {place} has {size} tokens: give "
            "the tokenizer of the model that was converted."
        )
    named = {header.values.get(f"tokenizer.ggml.{name}") for name in _ENDS}
    ends = {end for end in named if isinstance(end, int) and 0 <= end < size}
    made.eos_token_id = sorted(ends | set(() if model is None else stop_ids(tokenizer, model)))
    places = given_places(config)
    most = min((limit for limit in (max_window, places) if limit is not None), default=None)
    return TextSide.of(config, place, tokenizer, made, GenerationSettings(place, None, made), most)
