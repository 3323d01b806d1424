"""Checks of a model folder that need no weights in memory: what is missing or cut short is said before any loading."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen_core.errors import ModelFilesError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"


_WINDOW_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")


def declared_window(config: Mapping[str, Any]) -> int | None:
    """The context window that a model's configuration names, in tokens, or None."""
    values = (config.get(field) for field in _WINDOW_FIELDS)
    return next((v for v in values if isinstance(v, int) and v > 0), None)


def check_model_folder(folder: Path) -> None:
    """Checks that a folder holds a configuration, a tokenizer and whole safetensors weights.

    Raises:
        ModelFilesError: Naming what is missing or damaged.
    """
    check_description(folder)
    for shard in weight_files(folder):
        _check_safetensors(shard)


def check_description(folder: Path) -> None:
    """Checks the small files, which come before the weights.

    Raises:
        ModelFilesError: If the configuration or the tokenizer is missing or not JSON.
    """
    if not folder.is_dir():
        raise ModelFilesError(f"{folder} is not a folder: give a model folder in transformers format, or a hub id.")
    config = folder / "config.json"
    if not config.is_file():
        raise ModelFilesError(f"{folder} has no config.json: save the model there with model.save_pretrained(folder).")
    _read_json(config)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelFilesError(
            f"{folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}): save it there with "
            "tokenizer.save_pretrained(folder)."
        )
    if (folder / "tokenizer.json").is_file():
        _read_json(folder / "tokenizer.json")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model.

    Raises:
        ModelFilesError: If there are none, or the index names one that is not there.
    """
    if (folder / _INDEX).is_file():
        names = sorted(set(_read_json(folder / _INDEX).get("weight_map", {}).values()))
        missing = [n for n in names if not (folder / n).is_file()]
        if missing or not names:
            raise ModelFilesError(
                f"{folder} lacks {len(missing)} of the {len(names)} weight files that {_INDEX} names"
                f"{': ' + ', '.join(missing[:3]) if missing else ''}. The download broke off: fetch the model again."
            )
        return [folder / n for n in names]
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
    if pickled:
        raise ModelFilesError(
            f"{folder} has its weights as pickle files only ({', '.join(pickled[:3])}), which can run code when "
            "loaded: convert them once with model.save_pretrained(folder, safe_serialization=True)."
        )
    raise ModelFilesError(f"{folder} has no weights ({_WEIGHTS}): save them there with model.save_pretrained(folder).")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelFilesError(f"{path} cannot be read as JSON ({problem}): fetch the file again.") from problem


def _check_safetensors(path: Path) -> None:
    """Compares a file's length with what its own header announces."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ModelFilesError(f"{path} has {size} bytes, too few for a safetensors file: fetch it again.")
        length = struct.unpack("<Q", start)[0]
        if length > size - 8:
            raise ModelFilesError(
                f"{path} announces a header of {length} bytes but has {size}: it is cut short or no safetensors file. "
                "Fetch it again."
            )
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise ModelFilesError(f"{path} has a damaged safetensors header ({problem}): fetch it again.") from problem
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelFilesError(
            f"{path} has {size} bytes where {expected} are announced: the download broke off. Fetch it again."
        )
