"""Loads members from their configurations; everything cheap is checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepen_core.chat.prompt_form import PromptForm
from deepen_core.config import MemberConfig
from deepen_core.errors import ConfigurationError, DeepenError, ModelFilesError, brief
from deepen_core.members.base import WeightBytes
from deepen_core.members.memory import is_memory, more_room
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers.bars import hub_bars, weight_bars
from deepen_core.members.transformers.causal import CausalMember
from deepen_core.members.transformers.checkpoint import (
    check_model_folder,
    count_parameters,
    declared_window,
    weight_files,
)
from deepen_core.members.transformers.generation_settings import GenerationSettings
from deepen_core.members.transformers.hub import fetch_weights
from deepen_core.members.transformers.languages import language_id, set_source_language
from deepen_core.members.transformers.model_member import ModelMember
from deepen_core.members.transformers.pretrained import auto_class, is_encoder_decoder, load_config, load_tokenizer
from deepen_core.members.transformers.random_state import own_randomness
from deepen_core.members.transformers.requirements import missing_package
from deepen_core.members.transformers.seq2seq import Seq2SeqMember
from deepen_core.members.transformers.source import find_source

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class Description:
    """A `DescribedMember`: configuration and tokenizer are loaded, weights are not."""

    config: MemberConfig
    folder: Path
    local: bool
    """Whether `folder` is the user's own; otherwise it is in the hub's cache and has no weights yet."""
    model_config: Any
    tokenizer: MemberTokenizer
    context_window: int
    device: torch.device
    dtype: torch.dtype | str
    source_window: int | None = None
    """Of the encoder, in an encoder-decoder model; `context_window` is then its decoder's."""
    ruled_out: Sequence[int] = ()
    """Ids that no answer contains."""

    @property
    def name(self) -> str:
        """The member's name."""
        return str(self.config.name)

    @property
    def wanted_dtype(self) -> torch.dtype:
        """The dtype to load its weights in; "auto" is resolved as far as its configuration allows."""
        dtype = self.dtype if isinstance(self.dtype, torch.dtype) else getattr(self.model_config, "dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    @property
    def architecture(self) -> str:
        """See `DescribedMember.architecture`."""
        return ", ".join(getattr(self.model_config, "architectures", None) or [type(self.model_config).__name__])

    def weight_bytes(self) -> WeightBytes | None:
        """See `DescribedMember.weight_bytes`. Quantised weights stay as they are in the files."""
        if not self.local:
            return None
        parameters = count_parameters(self.folder)
        files = sum(file.stat().st_size for file in weight_files(self.folder))
        quantised = getattr(self.model_config, "quantization_config", None) is not None
        memory = files if quantised else parameters * self.wanted_dtype.itemsize
        return WeightBytes(parameters, files, memory, str(self.wanted_dtype).removeprefix("torch."))

    def check_files(self) -> None:
        """See `DescribedMember.check_files`."""
        if self.local:
            check_model_folder(self.folder, tokenizer=self.config.tokenizer is None)

    def load(self, *, progress: bool) -> ModelMember:
        """See `DescribedMember.load`."""
        return load_member(self, progress)


def describe(
    config: MemberConfig,
    device: str | None,
    dtype: str | None,
    max_window: int | None = None,
    *,
    progress: bool = False,
) -> Description:
    """Reads a member's configuration and tokenizer.

    Args:
        config: The member.
        device: Used if the member does not set its own.
        dtype: Used if the member does not set its own.
        max_window: Caps its context window.
        progress: Show the hub's progress bars while files are downloaded.

    Raises:
        ConfigurationError: For a device or dtype that does not exist, or a model that does not predict the next token
            or needs something that is not installed or not allowed.
        ModelFilesError: If files are missing, damaged or in another format.
        TokenizerError: If the tokenizer cannot be used.
    """
    place = _device(config.device or device)
    kind = _dtype(config.dtype or dtype)
    with hub_bars(progress):
        source = find_source(config)
    model_config = load_config(config, source)
    tokenizer = load_tokenizer(config, source, model_config)
    name, settings = str(config.name), GenerationSettings(source.place, source.folder, model_config)
    start, source_window, ruled_out = None, None, []
    if is_encoder_decoder(model_config):
        set_source_language(tokenizer, config.source_language, source.place)
        target = config.target_language
        forced = None if target is None else language_id(tokenizer, target, source.place, "target_language")
        start, ruled_out = settings.decoder_start(forced), settings.ruled_out()
        source_window = _window(config, max_window, model_config, tokenizer, "encoder")
    form = PromptForm(config.prompt, config.system, name)
    described = MemberTokenizer(tokenizer, name, settings.stop_ids(), form, start)
    window = _window(config, max_window, model_config, tokenizer, None if source_window is None else "decoder")
    return Description(
        config,
        source.folder,
        source.local,
        model_config,
        described,
        window,
        place,
        kind,
        source_window=source_window,
        ruled_out=ruled_out,
    )


def load_member(described: Description, progress: bool) -> ModelMember:
    """Loads a member's weights.

    Args:
        described: The member.
        progress: Show the progress bars of the hub and of `transformers`.

    Raises:
        ConfigurationError: If the member does not fit on its device, or a package is missing.
        ModelFilesError: If weights are missing, damaged or do not fit the configuration.
    """
    with hub_bars(progress):
        folder = described.folder if described.local else fetch_weights(described.config)
    check_model_folder(folder, tokenizer=described.config.tokenizer is None)
    kind = auto_class(described.model_config)
    try:
        # Tensors that are missing from the files are initialised at random before we can check for them.
        with weight_bars(progress), own_randomness():
            loaded: Any = kind.from_pretrained(
                folder,
                dtype=described.dtype,
                use_safetensors=True,
                trust_remote_code=described.config.trust_remote_code,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **described.config.model_kwargs,
            )
            model, report = loaded
            _check_complete(folder, model, report)
            model.eval().requires_grad_(False).to(described.device)
    except DeepenError:
        raise
    except Exception as problem:  # a wrong value in config.json raises anything that the model's own code raises
        if is_memory(problem):
            size = sum(file.stat().st_size for file in weight_files(folder)) / 2**20
            raise ConfigurationError(
                f"{described.name} does not fit on {described.device}: its weight files have {size:.0f} MiB. "
                f"{more_room(described.wanted_dtype)} ({brief(problem)})."
            ) from problem
        if isinstance(problem, ImportError):
            raise missing_package(str(folder), problem) from problem
        if given := described.config.model_kwargs:
            raise ConfigurationError(
                f"{described.name} cannot be loaded with model_kwargs ({', '.join(given)}): {brief(problem)}. "
                "Remove or correct the argument that this names, or try without model_kwargs."
            ) from problem
        raise ModelFilesError(
            f"The weights of {folder} cannot be loaded ({brief(problem)}): check what that names in its config.json, "
            f"or try the model alone with {kind.__name__}.from_pretrained."
        ) from problem
    parts = (described.name, model, described.tokenizer, described.context_window)
    if described.source_window is None:
        return CausalMember(*parts)
    return Seq2SeqMember(*parts, described.source_window, described.ruled_out)


def _check_complete(folder: Path, model: Any, report: Mapping[str, Any]) -> None:
    """Rejects weights that leave tensors of the model random. Tied tensors do not count as missing."""
    missing = sorted(report["missing_keys"])
    mismatched = sorted(
        f"{name} {list(saved)} where {list(wanted)} is needed" for name, saved, wanted in report["mismatched_keys"]
    )
    if not missing and not mismatched:
        return
    faults = [
        f"{len(names)} of its {len(model.state_dict())} tensors {fault} ({_first(names)})"
        for names, fault in ((missing, "are missing"), (mismatched, "have another shape"))
        if names
    ]
    raise ModelFilesError(
        f"The weights of {folder} do not fit its config.json: {' and '.join(faults)}. They would be random: correct "
        "the configuration, or fetch or save the model again."
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = "use 'cpu', 'cuda', 'cuda:1' or 'mps'."
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError) as problem:
        raise ConfigurationError(f"Unknown device {name!r}: {known}") from problem
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigurationError(f"Members cannot run on device {name!r}: {known}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"Device {name!r} is not there: {torch.cuda.device_count()} CUDA devices were found.")
    if device.type == "mps" and (device.index or not torch.backends.mps.is_available()):
        found = int(torch.backends.mps.is_available())
        raise ConfigurationError(f"Device {name!r} is not there: {found} MPS devices were found. Use 'cpu'.")
    return device


def _dtype(name: object) -> torch.dtype | str:
    if name in (None, "auto"):
        return "auto"
    if isinstance(name, torch.dtype):
        given = str(name).removeprefix("torch.")
        raise ConfigurationError(f"dtype is the object {name}: give a name, such as {given!r}.")
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype) or dtype not in [getattr(torch, known) for known in _DTYPES]:
        raise ConfigurationError(f"Unknown dtype {name!r}: use 'auto', {', '.join(map(repr, _DTYPES))}.")
    return dtype


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
