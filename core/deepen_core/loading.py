"""From configurations to members: everything cheap is checked before anything heavy is loaded."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from deepen_core.config import MemberConfig, member_config
from deepen_core.errors import ConfigurationError, ModelFilesError, TokenizerError
from deepen_core.files import check_description, check_model_folder, declared_window
from deepen_core.members.causal import CausalMember
from deepen_core.members.tokenizer import MemberTokenizer

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_DESCRIPTION_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]
_WINDOW_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
)
_NO_LIMIT = 1_000_000
_progress_lock = threading.Lock()


def member_configs(models: Sequence[str | Path | MemberConfig | Mapping[str, Any]]) -> list[MemberConfig]:
    """Checks the list of members and gives each a name of its own.

    Raises:
        ConfigurationError: If the list is empty or an entry is wrong.
    """
    if isinstance(models, (str, Path, MemberConfig, Mapping)):
        raise ConfigurationError(
            f"models is a single {type(models).__name__}: give a list, such as ['path/a', 'path/b']."
        )
    if not models:
        raise ConfigurationError("The list of members is empty: give at least one model folder or hub id.")
    configs = []
    for number, entry in enumerate(models):
        try:
            configs.append(member_config(entry))
        except ConfigurationError as problem:
            raise ConfigurationError(f"Member {number}: {problem}") from problem
    given = [Path(c.model).resolve().name if c.name is None else c.name for c in configs]
    named = []
    for place, (config, name) in enumerate(zip(configs, given, strict=True)):
        earlier = given[:place].count(name)
        named.append(config.model_copy(update={"name": f"{name}-{earlier + 1}" if earlier else name}))
    return named


def main_index(main: object, configs: Sequence[MemberConfig]) -> int:
    """Resolves the main member.

    Raises:
        ConfigurationError: If the index or name is not among the members.
    """
    names = [str(c.name) for c in configs]
    if isinstance(main, str):
        places = [i for i, c in enumerate(configs) if main in (c.name, c.model)]
        if not places:
            raise ConfigurationError(f"main is {main!r}, but the members are {', '.join(names)}.")
        return places[0]
    if isinstance(main, bool) or not isinstance(main, int) or not -len(names) <= main < len(names):
        raise ConfigurationError(
            f"main is {main!r}, but there are {len(names)} members ({', '.join(names)}): give an index from 0 to "
            f"{len(names) - 1} or a name."
        )
    return main % len(names)


@dataclass(frozen=True)
class Description:
    """A member before its weights: configuration and tokenizer are read, nothing heavy is."""

    config: MemberConfig
    folder: Path
    model_config: Any
    tokenizer: MemberTokenizer
    context_window: int
    device: torch.device
    dtype: torch.dtype | str

    @property
    def name(self) -> str:
        """How the member is called."""
        return str(self.config.name)


def describe(config: MemberConfig, device: str | None, dtype: str) -> Description:
    """Reads a member's configuration and tokenizer.

    Raises:
        ConfigurationError: For a device or dtype that does not exist, or a model that is not decoder-only.
        ModelFilesError: If files are missing or damaged.
        TokenizerError: If the tokenizer cannot be used.
    """
    place = _device(config.device or device)
    kind = _dtype(config.dtype or dtype)
    folder = _local_folder(config)
    code = {"trust_remote_code": config.trust_remote_code}
    try:
        model_config = AutoConfig.from_pretrained(folder, **code)
    except (OSError, ValueError, KeyError) as problem:
        raise ModelFilesError(f"The configuration of {folder} cannot be used: {problem}") from problem
    if getattr(model_config, "is_encoder_decoder", False):
        raise ConfigurationError(
            f"{config.model} is an encoder-decoder model ({model_config.model_type}); members are decoder-only for now."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **code)
    except Exception as problem:  # damaged tokenizer files raise whatever their parser raises
        raise TokenizerError(f"The tokenizer of {folder} cannot be loaded ({problem}): save it again.") from problem
    described = MemberTokenizer(tokenizer, str(config.name), _generation_stop_ids(folder, model_config))
    return Description(config, folder, model_config, described, _window(model_config, tokenizer), place, kind)


def load_member(described: Description, progress: bool) -> CausalMember:
    """Loads a member's weights.

    Raises:
        ModelFilesError: If weights are missing, damaged or do not fit the configuration.
    """
    folder = _download_weights(described) if not Path(described.config.model).is_dir() else described.folder
    check_model_folder(folder)
    try:
        with _transformers_progress(progress):
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=described.dtype,
                use_safetensors=True,
                trust_remote_code=described.config.trust_remote_code,
            )
    except (OSError, ValueError, RuntimeError) as problem:
        raise ModelFilesError(f"The weights of {folder} cannot be loaded: {problem}") from problem
    model.eval().requires_grad_(False).to(described.device)
    return CausalMember(described.name, model, described.tokenizer, described.context_window)


def load_members(described: Sequence[Description], progress: bool) -> list[CausalMember]:
    """Checks the weight files of all members, then loads them one after the other."""
    for description in described:
        if Path(description.config.model).is_dir():
            check_model_folder(description.folder)
    bar = tqdm(described, desc="Loading members", unit="member", disable=not progress, leave=False)
    return [load_member(d, progress) for d in bar]


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise ConfigurationError(f"Unknown device {name!r}: use 'cpu', 'cuda' or 'cuda:1'.") from problem
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"Device {name!r} is not there: {torch.cuda.device_count()} CUDA devices were found.")
    return device


def _dtype(name: str) -> torch.dtype | str:
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigurationError(f"Unknown dtype {name!r}: use 'auto', 'float32', 'bfloat16' or 'float16'.")
    return dtype


def _local_folder(config: MemberConfig) -> Path:
    """The folder of a local model, or of the small files of one on the hub."""
    path = Path(config.model).expanduser()
    if path.exists() or not _HUB_ID.fullmatch(config.model):
        check_description(path)
        return path
    folder = _snapshot(config, _DESCRIPTION_FILES)
    check_description(folder)
    return folder


def _download_weights(described: Description) -> Path:
    return _snapshot(described.config, [*_DESCRIPTION_FILES, "*.safetensors"])


def _snapshot(config: MemberConfig, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(config.model, revision=config.revision, allow_patterns=patterns))
    except Exception as problem:  # network, authorisation and cache errors share no useful base class
        raise ModelFilesError(
            f"{config.model!r} is no folder here, and could not be fetched from the hub ({type(problem).__name__}: "
            f"{str(problem).partition(chr(10))[0]}). Check the path, or the id and the network."
        ) from problem


def _generation_stop_ids(folder: Path, model_config: Any) -> set[int]:
    """Every id that ends a text by the generation config or the model's configuration."""
    ids: set[int] = set()
    path = folder / "generation_config.json"
    sources = [model_config.get_text_config().to_dict(), model_config.to_dict()]
    if path.is_file():
        sources.append(json.loads(path.read_text(encoding="utf-8")))
    for source in sources:
        value = source.get("eos_token_id")
        ids |= set(value) if isinstance(value, list) else {value} if isinstance(value, int) else set()
    return ids


def _window(model_config: Any, tokenizer: Any) -> int:
    declared = declared_window(model_config.get_text_config().to_dict())
    return declared or int(min(tokenizer.model_max_length, _NO_LIMIT))


@contextmanager
def _transformers_progress(wanted: bool) -> Iterator[None]:
    """Keeps transformers' own bar off where no progress is wanted, and leaves its setting as it was."""
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
