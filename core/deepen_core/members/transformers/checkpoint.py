"""Checks of a model folder without loading its weights, so that missing or truncated files are reported first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers.blueprint import Blueprint
from deepen_core.members.transformers.formats import INDEX, WEIGHTS, check_file
from deepen_core.members.transformers.json_file import read_object
from deepen_core.members.transformers.limits import check_files, check_repeats
from deepen_core.members.transformers.weight_files import weight_shapes

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
        if isinstance(original, int) and isinstance(factor, (int, float)) and math.isfinite(original * factor):
            reach.append(int(original * factor))
    return max(reach)


def _rope_settings(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the settings of rotary embeddings, of which some models have one for each kind of layer."""
    given = [config.get(field) for field in ("rope_scaling", "rope_parameters")]
    outer = [settings for settings in given if isinstance(settings, Mapping)]
    return [*outer, *(inner for settings in outer for inner in settings.values() if isinstance(inner, Mapping))]


def check_model_folder(folder: Path, blueprint: Blueprint | None, *, tokenizer: bool = True) -> None:
    """Checks that a folder contains a configuration, tokenizer files and complete safetensors weights that fit it.

    Args:
        folder: The folder.
        blueprint: What the configuration describes, as far as that is known.
        tokenizer: Whether to check for the tokenizer as well.

    Raises:
        ModelFilesError: Naming what is missing, damaged or does not fit.
    """
    check_description(folder, tokenizer=tokenizer)
    shapes = weight_shapes(folder)
    if blueprint is not None:
        blueprint.check(folder, shapes)


def check_description(folder: Path, *, tokenizer: bool = True) -> None:
    """Checks the small files, ahead of the weights. Arguments as for `check_model_folder`.

    Raises:
        ModelFilesError: If the folder, the configuration or the tokenizer is missing, the configuration is not JSON, or
            a file or number is far larger than any model needs.
    """
    _check_folder(folder)
    config = folder / "config.json"
    if not config.is_file():
        inner = [str(path.parent) for pattern in _INNER for path in sorted(folder.glob(pattern))]
        way_out = f"give {' or '.join(inner[:3])}" if inner else _SAVE
        raise ModelFilesError(f"{folder} has no config.json: {way_out}.")
    check_files(folder)
    found = read_object(config)
    check_repeats(config, found)
    if (named := found.get("transformers_weights")) not in (None, WEIGHTS, INDEX):
        raise ModelFilesError(
            f"{config} names the weights {named!r} (transformers_weights): members are read from {WEIGHTS} or {INDEX}. "
            "Rename the file, and remove that field."
        )
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


def count_parameters(folder: Path) -> int:
    """Returns the number of parameters in a model's safetensors files, from their headers.

    Raises:
        ModelFilesError: As `weight_shapes`.
    """
    return sum(math.prod(shape) for shape in weight_shapes(folder).values())
