"""The safetensors files of a model folder: which they are, and what their headers say."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers.formats import INDEX, WEIGHTS
from deepen_core.members.transformers.json_file import read_object
from deepen_core.members.transformers.limits import MAX_HEADER_BYTES

_SAVE = "save the model there with model.save_pretrained(folder)"

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor, by its name."""


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a model, which are those that `transformers` reads.

    Raises:
        ModelFilesError: If there are none or two sets of them, the index is damaged, or a file that it lists is missing
            or elsewhere.
    """
    single = (folder / WEIGHTS).is_file()
    if not (folder / INDEX).is_file():
        if single:
            return [folder / WEIGHTS]
        raise ModelFilesError(f"{folder} has no weights ({WEIGHTS}): {_SAVE}.")
    names = _shard_names(folder / INDEX)
    missing = [name for name in names if not _is_file(folder / name)]
    if single and names != [WEIGHTS]:
        raise ModelFilesError(
            f"{folder} has two sets of weights: {WEIGHTS}, which transformers would read, and {len(names)} files that "
            f"{INDEX} names. Move one of the two out of the folder, {INDEX} with its files."
        )
    if missing or not names:
        first = ": " + ", ".join(name[:200] for name in missing[:3]) if missing else ""
        raise ModelFilesError(
            f"{folder} lacks {len(missing)} of the {len(names)} weight files that {INDEX} names{first}. The download "
            "is incomplete: fetch it again."
        )
    return [folder / name for name in names]


def weight_shapes(folder: Path) -> Shapes:
    """Returns the shapes of all tensors of a model, after comparing each file with its own header.

    Raises:
        ModelFilesError: As `weight_files`, or if a file is truncated or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        shapes |= _shapes(path)
    return shapes


def _shard_names(index: Path) -> list[str]:
    shards = read_object(index).get("weight_map", {})
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ModelFilesError(
            f'{index} is damaged: its "weight_map" must give a file name for each tensor. Fetch the file again.'
        )
    names = sorted(set(shards.values()))
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in name or Path(name).is_absolute():
            raise ModelFilesError(
                f"{index} names the weight file {name!r}, which is outside of the folder: fetch the file again."
            )
    return names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
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
        if length > MAX_HEADER_BYTES:
            raise ModelFilesError(
                f"{path} announces a header of {length:,} bytes, and at most {MAX_HEADER_BYTES:,} are read: fetch it "
                "again."
            )
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
            shapes = {name: tuple(int(width) for width in entry["shape"]) for name, entry in entries.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as problem:
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
    return shapes
