"""Checks of a model folder without loading its weights, so that missing or truncated files are reported first."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers.formats import INDEX, WEIGHTS, check_file

_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken")
_INNER = ("*/config.json", "snapshots/*/config.json")  # such as the folder of a model in the hub's cache
_SAVE = "save the model there with model.save_pretrained(folder)"
_WINDOW_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")


def declared_window(config: Mapping[str, Any], part: str = "") -> int | None:
    """Returns the context window that a model's configuration declares, in tokens, or None.

    Rotary embeddings that are scaled reach further than the positions that a model was first trained on. Linear scaling
    does not count unless it names these: configurations usually declare the scaled window beside it.

    Args:
        config: The configuration.
        part: "encoder" or "decoder", which a few configurations have different windows for.
    """
    values = (config.get(field) for field in (f"max_{part}_position_embeddings", *_WINDOW_FIELDS))
    declared = next((v for v in values if isinstance(v, int) and v > 0), None)
    if declared is None:
        return None
    reach = [declared]
    for rope in _rope_settings(config):
        original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        if original is None and (rope.get("rope_type") or rope.get("type")) in ("yarn", "dynamic"):
            original = declared
        factor = rope.get("factor")
        if isinstance(original, int) and isinstance(factor, (int, float)):
            reach.append(int(original * factor))
    return max(reach)


def _rope_settings(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the settings of rotary embeddings, of which some models have one for each kind of layer."""
    given = [config.get(field) for field in ("rope_scaling", "rope_parameters")]
    outer = [settings for settings in given if isinstance(settings, Mapping)]
    return [*outer, *(inner for settings in outer for inner in settings.values() if isinstance(inner, Mapping))]


def check_model_folder(folder: Path, *, tokenizer: bool = True) -> None:
    """Checks that a folder contains a configuration, tokenizer files and complete safetensors weights.

    Args:
        folder: The folder.
        tokenizer: Whether to check for the tokenizer as well.

    Raises:
        ModelFilesError: Naming what is missing or damaged.
    """
    check_description(folder, tokenizer=tokenizer)
    for shard in weight_files(folder):
        _check_safetensors(shard)


def check_description(folder: Path, *, tokenizer: bool = True) -> None:
    """Checks the small files, ahead of the weights. Arguments as for `check_model_folder`.

    Raises:
        ModelFilesError: If the folder, the configuration or the tokenizer is missing, or the configuration is not JSON.
    """
    _check_folder(folder)
    config = folder / "config.json"
    if not config.is_file():
        inner = [str(path.parent) for pattern in _INNER for path in sorted(folder.glob(pattern))]
        way_out = f"give {' or '.join(inner[:3])}" if inner else _SAVE
        raise ModelFilesError(f"{folder} has no config.json: {way_out}.")
    read_object(config)
    if tokenizer:
        check_tokenizer(folder)


def check_tokenizer(folder: Path) -> None:
    """Checks that a folder has the files of a tokenizer.

    Raises:
        ModelFilesError: If there is no such folder, or no tokenizer in it.
    """
    _check_folder(folder)
    if not any(path.is_file() for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        raise ModelFilesError(
            f"{folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}): save it there with "
            "tokenizer.save_pretrained(folder)."
        )


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        check_file(folder)
        problem = f"{folder} is not a folder" if folder.exists() else f"There is no folder {folder.absolute()}"
        raise ModelFilesError(f"{problem}: give a model folder in transformers format, or a hub id.")


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a model.

    Raises:
        ModelFilesError: If there are none, the index is damaged, or a file that it lists is missing.
    """
    if (folder / INDEX).is_file():
        names = _shard_names(folder / INDEX)
        missing = [n for n in names if not (folder / n).is_file()]
        if missing or not names:
            raise ModelFilesError(
                f"{folder} lacks {len(missing)} of the {len(names)} weight files that {INDEX} names"
                f"{': ' + ', '.join(missing[:3]) if missing else ''}. The download is incomplete: fetch it again."
            )
        return [folder / n for n in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    raise ModelFilesError(f"{folder} has no weights ({WEIGHTS}): {_SAVE}.")


def count_parameters(folder: Path) -> int:
    """Returns the number of parameters in a model's safetensors files, from their headers.

    Raises:
        ModelFilesError: As `weight_files`, or if a file is damaged.
    """
    count = 0
    for path in weight_files(folder):
        _check_safetensors(path)
        with safe_open(path, framework="pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that contains an object.

    Raises:
        ModelFilesError: If it cannot be read, is not JSON or contains something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise ModelFilesError(f"{path} cannot be read as JSON ({problem}): fetch the file again.") from problem
    if not isinstance(content, dict):
        raise ModelFilesError(
            f"{path} holds a JSON {type(content).__name__} where an object is needed: fetch the file again."
        )
    return content


def _shard_names(index: Path) -> list[str]:
    shards = read_object(index).get("weight_map", {})
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ModelFilesError(
            f'{index} is damaged: its "weight_map" must give a file name for each tensor. Fetch the file again.'
        )
    return sorted(set(shards.values()))


def _check_safetensors(path: Path) -> None:
    """Compares a file with its own header: its length, and the position, type and shape of each tensor."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ModelFilesError(f"{path} has {size} bytes, too few for a safetensors file: fetch it again.")
        length = struct.unpack("<Q", start)[0]
        if length > size - 8:
            raise ModelFilesError(
                f"{path} announces a header of {length} bytes but has {size}: it is truncated or not a safetensors "
                "file. Fetch it again."
            )
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
            raise ModelFilesError(f"{path} has a damaged safetensors header ({problem}): fetch it again.") from problem
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelFilesError(
            f"{path} has {size} bytes, but its header announces {expected}: the download is incomplete. Fetch it again."
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as problem:
        raise ModelFilesError(f"{path} has a damaged safetensors header ({problem}): fetch it again.") from problem
