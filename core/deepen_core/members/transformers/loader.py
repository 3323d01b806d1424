"""Loads members from their configurations; everything cheap is checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepen_core.config import MemberConfig
from deepen_core.errors import ConfigurationError, DeepenError, ModelFilesError, brief
from deepen_core.members.base import WeightBytes
from deepen_core.members.memory import is_memory, more_room
from deepen_core.members.transformers.adapter import Adapter
from deepen_core.members.transformers.bars import hub_bars, weight_bars
from deepen_core.members.transformers.blueprint import Blueprint, does_not_fit, other_shape
from deepen_core.members.transformers.checkpoint import check_model_folder, count_parameters
from deepen_core.members.transformers.generation_settings import GenerationSettings
from deepen_core.members.transformers.hub import fetch_weights
from deepen_core.members.transformers.loaded import loaded_member
from deepen_core.members.transformers.model_member import ModelMember
from deepen_core.members.transformers.pretrained import architecture_of, auto_class, load_config, load_tokenizer
from deepen_core.members.transformers.random_state import own_randomness
from deepen_core.members.transformers.requirements import check_unquantised, missing_package
from deepen_core.members.transformers.source import find_adapter, find_source
from deepen_core.members.transformers.text_side import TextDescribed, TextSide
from deepen_core.members.transformers.weight_files import weight_files

_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Description(TextDescribed):
    """A `DescribedMember`: configuration and tokenizer are loaded, weights are not."""

    config: MemberConfig
    folder: Path
    local: bool
    """Whether `folder` is the user's own; otherwise it is in the hub's cache and has no weights yet."""
    model_config: Any
    blueprint: Blueprint | None
    """What the configuration describes; None if that is found out only by loading it."""
    text: TextSide
    device: torch.device
    dtype: torch.dtype | str
    adapter: Adapter | None = None
    """Merged into the weights when they are loaded."""

    @property
    def wanted_dtype(self) -> torch.dtype:
        """The dtype to load its weights in; "auto" is resolved as far as its configuration allows."""
        dtype = self.dtype if isinstance(self.dtype, torch.dtype) else getattr(self.model_config, "dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    @property
    def architecture(self) -> str:
        """See `DescribedMember.architecture`."""
        return architecture_of(self.model_config)

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
            check_model_folder(self.folder, self.blueprint, tokenizer=self.config.tokenizer is None)

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
    place = device_named(config.device or device)
    kind = dtype_named(config.dtype or dtype)
    with hub_bars(progress):
        source = find_source(config)
    model_config, blueprint = load_config(config, source)
    adapter = find_adapter(config)
    if adapter is not None:
        check_unquantised(source.place, model_config, config.model_kwargs)
    tokenizer = load_tokenizer(config, source, model_config)
    settings = GenerationSettings.in_folder(source.place, source.folder, model_config)
    text = TextSide.of(config, source.place, tokenizer, model_config, settings, max_window)
    files = (source.folder, source.local)
    return Description(config, *files, model_config, blueprint, text, place, kind, adapter=adapter)


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
    check_model_folder(folder, described.blueprint, tokenizer=described.config.tokenizer is None)
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
            if described.adapter is not None:
                model = described.adapter.merged_into(model, described.config.model)
            model.eval().requires_grad_(False)
            if "device_map" not in described.config.model_kwargs:
                model.to(described.device)
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
    return loaded_member(described.name, model, described.text)


def _check_complete(folder: Path, model: Any, report: Mapping[str, Any]) -> None:
    """Rejects weights that leave tensors of the model random. Tied tensors do not count as missing."""
    missing = sorted(report["missing_keys"])
    mismatched = sorted(other_shape(name, saved, wanted) for name, saved, wanted in report["mismatched_keys"])
    if missing or mismatched:
        faults = [("are missing", missing), ("have another shape", mismatched)]
        raise does_not_fit(folder, len(model.state_dict()), faults)


def device_named(name: str | None) -> torch.device:
    """Returns a device by its name; the best there is if None.

    Raises:
        ConfigurationError: If there is no such device.
    """
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


def dtype_named(name: object) -> torch.dtype | str:
    """Returns a dtype by its name, or "auto".

    Raises:
        ConfigurationError: If it is none that members are loaded in.
    """
    if name in (None, "auto"):
        return "auto"
    if isinstance(name, torch.dtype):
        given = str(name).removeprefix("torch.")
        raise ConfigurationError(f"dtype is the object {name}: give a name, such as {given!r}.")
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype) or dtype not in [getattr(torch, known) for known in _DTYPES]:
        raise ConfigurationError(f"Unknown dtype {name!r}: use 'auto', {', '.join(map(repr, _DTYPES))}.")
    return dtype
