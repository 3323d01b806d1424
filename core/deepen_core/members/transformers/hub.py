"""Downloads a model's files from the hub if a hub id was given."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from deepen_core.config import MemberConfig
from deepen_core.errors import ModelFilesError, brief

_DESCRIPTION_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]
# Copies of the weights in other layouts (Mistral, Llama, gpt-oss) or for other runtimes.
_NOT_FETCHED = ["consolidated*", "original/*", "metal/*", "onnx/*"]
_HUB_SECONDS = 10.0


def fetch_description(config: MemberConfig) -> Path:
    """Downloads the small files of a model, and returns their folder in the hub's cache.

    Raises:
        ModelFilesError: If the model is neither on the hub nor in the cache, or the hub cannot be reached.
    """
    return _snapshot(config, _DESCRIPTION_FILES)


def fetch_weights(config: MemberConfig) -> Path:
    """Downloads all files that are needed, weights included. Raises the same errors as `fetch_description`."""
    return _snapshot(config, [*_DESCRIPTION_FILES, "*.safetensors"])


def _snapshot(config: MemberConfig, patterns: list[str]) -> Path:
    unreachable = _unreachable(config)
    try:
        folder = snapshot_download(
            config.model,
            revision=config.revision,
            allow_patterns=patterns,
            ignore_patterns=_NOT_FETCHED,
            local_files_only=unreachable is not None,
        )
    except Exception as problem:  # network, authorisation and cache errors share no useful base class
        said = f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
        raise ModelFilesError(
            f"There is no folder {Path(config.model).absolute()}, and as a hub id {config.model!r} could not be "
            f"fetched ({unreachable or said}). Check the path, or the id and the network."
        ) from problem
    return Path(folder)


def _unreachable(config: MemberConfig) -> str | None:
    """Returns why the hub cannot be reached, or None. It has a timeout; downloads wait minutes for a dead network."""
    switches = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    if constants.HF_HUB_OFFLINE or any(switch in ("1", "ON", "YES", "TRUE") for switch in switches):
        return "HF_HUB_OFFLINE is set, and it is not in the cache"
    try:
        HfApi().model_info(config.model, revision=config.revision, timeout=_HUB_SECONDS)
    except HfHubHTTPError:
        return None  # the hub does answer: the download reports what is wrong
    except Exception as problem:  # noqa: BLE001 (network errors share no useful base class)
        return brief(problem)
    return None
