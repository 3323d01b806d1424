"""Downloads a model's files from the hub if a hub id was given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from deepen_core.config import MemberConfig
from deepen_core.errors import ModelFilesError, brief
from deepen_core.members.transformers.formats import WEIGHTS, folder_names, has_weights, top_names

_DESCRIPTION_FILES = ["*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py"]
# Copies of the weights in other layouts (Mistral, Llama, gpt-oss) or for other runtimes.
_NOT_FETCHED = ["consolidated*", "original/*", "metal/*", "onnx/*"]
_HUB_SECONDS = 10.0


def fetch_description(config: MemberConfig) -> tuple[Path, Sequence[str]]:
    """Downloads the small files of a model.

    Returns:
        Their folder in the hub's cache, and the names of all files of the model, as `formats.top_names` returns them;
        those in the cache if the hub cannot be reached.

    Raises:
        ModelFilesError: If the model is neither on the hub nor in the cache, or the hub cannot be reached.
    """
    names, unreachable = _names(config)
    folder = _snapshot(config, _DESCRIPTION_FILES, unreachable)
    return folder, names or folder_names(folder)


def fetch_weights(config: MemberConfig) -> Path:
    """Downloads all files that are needed, weights included, and returns their folder in the hub's cache.

    Raises:
        ModelFilesError: As `fetch_description`, or if the model has no weights that can be loaded.
    """
    _, unreachable = _names(config)
    folder = _snapshot(config, [*_DESCRIPTION_FILES, "*.safetensors"], unreachable)
    if not has_weights(folder_names(folder)):
        where = f"on this machine, and the hub cannot be asked ({unreachable})" if unreachable else "on the hub"
        raise ModelFilesError(f"{config.model} has no {WEIGHTS} {where}. Give a model that has.")
    return folder


def fetch_file(config: MemberConfig, name: str) -> None:
    """Downloads one file of a model, beside its small ones in the hub's cache.

    Raises:
        ModelFilesError: As `fetch_description`.
    """
    _snapshot(config, [*_DESCRIPTION_FILES, name], _names(config)[1])


def _snapshot(config: MemberConfig, patterns: list[str], unreachable: str | None) -> Path:
    try:
        folder = snapshot_download(
            config.model,
            revision=config.revision,
            allow_patterns=patterns,
            ignore_patterns=_NOT_FETCHED,
            local_files_only=unreachable is not None,
            token=_token(config),
        )
    except Exception as problem:  # network, authorisation and cache errors share no useful base class
        said = f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
        raise ModelFilesError(
            f"There is no folder {Path(config.model).absolute()}, and as a hub id {config.model!r} could not be "
            f"fetched ({unreachable or said}). Check the path, or the id and the network."
        ) from problem
    return Path(folder)


def _names(config: MemberConfig) -> tuple[list[str], str | None]:
    """Asks the hub which files a model has; it has a timeout, and downloads wait minutes for a dead network.

    Returns:
        The names, none if they are unknown, and why the hub cannot be reached, or None.
    """
    switches = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    if constants.HF_HUB_OFFLINE or any(switch in ("1", "ON", "YES", "TRUE") for switch in switches):
        return [], "HF_HUB_OFFLINE is set, and it is not in the cache"
    try:
        model = HfApi().model_info(config.model, revision=config.revision, timeout=_HUB_SECONDS, token=_token(config))
    except HfHubHTTPError:
        return [], None  # the hub does answer: the download reports what is wrong
    except Exception as problem:  # noqa: BLE001 (network errors share no useful base class)
        return [], brief(problem)
    return top_names(file.rfilename for file in model.siblings or ()), None


def _token(config: MemberConfig) -> str | None:
    return None if config.token is None else config.token.get_secret_value()
