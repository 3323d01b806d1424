"""Loads members from their configurations; everything cheap is checked before anything heavy is loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from deepen_core.config import MemberConfig
from deepen_core.errors import (
    ConfigurationError,
    DeepenError,
    ModelFilesError,
    TokenizerError,
    brief,
)
from deepen_core.members.memory import is_memory, more_room
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers.causal import CausalMember
from deepen_core.members.transformers.checkpoint import check_model_folder, declared_window, read_object, weight_files
from deepen_core.members.transformers.hub import fetch_weights
from deepen_core.members.transformers.source import find_source

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_NO_LIMIT = 1_000_000
_progress_lock = threading.Lock()


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

    @property
    def name(self) -> str:
        """The member's name."""
        return str(self.config.name)

    @property
    def wanted_dtype(self) -> torch.dtype:
        """The dtype to load its weights in; "auto" is resolved as far as its configuration allows."""
        dtype = self.dtype if isinstance(self.dtype, torch.dtype) else getattr(self.model_config, "dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    def check_files(self) -> None:
        """See `DescribedMember.check_files`."""
        if self.local:
            check_model_folder(self.folder)

    def load(self, *, progress: bool) -> CausalMember:
        """See `DescribedMember.load`."""
        return load_member(self, progress)


def describe(config: MemberConfig, device: str | None, dtype: str | None, *, progress: bool = False) -> Description:
    """Reads a member's configuration and tokenizer.

    Args:
        config: The member.
        device: Used if the member does not set its own.
        dtype: Used if the member does not set its own.
        progress: Show the hub's progress bars while files are downloaded.

    Raises:
        ConfigurationError: For a device or dtype that does not exist, or a model that does not predict the next token.
        ModelFilesError: If files are missing, damaged or in another format.
        TokenizerError: If the tokenizer cannot be used.
    """
    place = _device(config.device or device)
    kind = _dtype(config.dtype or dtype)
    with _others_bars(progress):
        source = find_source(config)
    folder, local = source.folder, source.local
    code = {"trust_remote_code": config.trust_remote_code}
    try:
        model_config = AutoConfig.from_pretrained(folder, **code)
    except Exception as problem:  # a wrong value in it raises anything that the model's own checks raise
        raise ModelFilesError(
            f"The configuration of {folder} cannot be used ({brief(problem)}): correct config.json or fetch it again."
        ) from problem
    _check_causal(config, model_config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **code)
    except Exception as problem:  # damaged tokenizer files raise anything that their parser raises
        if (folder / "tokenizer.json").is_file():
            read_object(folder / "tokenizer.json")  # says more if that is no JSON
        raise TokenizerError(f"The tokenizer of {folder} cannot be loaded ({problem}): save it again.") from problem
    described = MemberTokenizer(tokenizer, str(config.name), _generation_stop_ids(folder, model_config))
    window = config.context_window or _window(model_config, tokenizer)
    return Description(config, folder, local, model_config, described, window, place, kind)


def load_member(described: Description, progress: bool) -> CausalMember:
    """Loads a member's weights.

    Args:
        described: The member.
        progress: Show the progress bars of the hub and of `transformers`.

    Raises:
        ConfigurationError: If the member does not fit on its device.
        ModelFilesError: If weights are missing, damaged or do not fit the configuration.
    """
    with _others_bars(progress):
        folder = described.folder if described.local else fetch_weights(described.config)
    check_model_folder(folder)
    try:
        # Tensors that are missing from the files are initialised at random before we can check for them.
        with _others_bars(progress), _kept_random_state():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=described.dtype,
                use_safetensors=True,
                trust_remote_code=described.config.trust_remote_code,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
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
        raise ModelFilesError(
            f"The weights of {folder} cannot be loaded ({brief(problem)}): check its config.json, or fetch the model "
            "again."
        ) from problem
    return CausalMember(described.name, model, described.tokenizer, described.context_window)


def _check_causal(config: MemberConfig, model_config: Any) -> None:
    """Rejects models that fill gaps or translate: their answers would be noise."""
    kind = model_config.model_type
    if getattr(model_config, "is_encoder_decoder", False):
        raise ConfigurationError(
            f"{config.model} is an encoder-decoder model ({kind}); members are decoder-only for now."
        )
    own_code = getattr(model_config, "auto_map", None)
    if config.trust_remote_code and isinstance(own_code, dict) and "AutoModelForCausalLM" in own_code:
        return
    if type(model_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigurationError(
            f"{config.model} is not a causal language model ({kind}): members must predict the next token. Choose one "
            "that AutoModelForCausalLM loads."
        )
    # Encoders have a causal class as well, which attends in both directions unless configured as a decoder.
    encoder = type(model_config) in MODEL_FOR_MASKED_LM_MAPPING or kind == "bert-generation"
    decoder = getattr(model_config, "is_decoder", False) or getattr(model_config, "causal", False)
    if encoder and not decoder:
        raise ConfigurationError(
            f"{config.model} is an encoder ({kind}) that looks at both sides of a token: members must predict the next "
            'one. Choose a causal language model; if this one was trained as such, set "is_decoder": true in its '
            "config.json."
        )


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


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Leaves torch's global random states unchanged, without initialising a GPU."""
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        yield


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


def _generation_stop_ids(folder: Path, model_config: Any) -> set[int]:
    """Returns every id that ends a text according to the generation config, else to the model's configuration."""
    path = folder / "generation_config.json"
    sources = [(path, read_object(path))] if path.is_file() else []
    if not any("eos_token_id" in source for _, source in sources):
        sources += [(folder / "config.json", c.to_dict()) for c in (model_config.get_text_config(), model_config)]
    ids: set[int] = set()
    for file, source in sources:
        value = source.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        if any(isinstance(v, bool) or not isinstance(v, int | None) for v in values):
            raise ModelFilesError(f"{file} has the eos_token_id {value!r}: it must be a token id or a list of them.")
        ids.update(v for v in values if v is not None)
    return ids


def _window(model_config: Any, tokenizer: Any) -> int:
    declared = declared_window(model_config.get_text_config().to_dict())
    return declared or int(min(tokenizer.model_max_length, _NO_LIMIT))


@contextmanager
def _others_bars(wanted: bool) -> Iterator[None]:
    """Disables the progress bars of transformers and the hub unless wanted, and restores the setting afterwards."""
    with _progress_lock:
        shown = transformers_logging.is_progress_bar_enabled()
        if wanted or not shown:
            yield
            return
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.enable_progress_bar()
