"""The bytes of a file of the store: safetensors, sealed by a checksum of every byte, header included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from deepen_core.fusion.deepen.store.fingerprints import FORMAT_VERSION, Fingerprint

LAYOUT: dict[str, tuple[str, ...]] = {
    "slot": ("tokens",),
    "index": ("rows", "entries"),
    "value": ("rows", "entries"),
    "spread": ("rows",),
}
"""The tensors that every file has, and what their dimensions count; a file may have others too."""

_MARK = b'"checksum":"'  # cannot occur inside a JSON string, where quotes are escaped
_UNSEALED = b"0" * 64


class UnusableError(Exception):
    """Why a file cannot be used; the message is the end of a sentence about the file."""


def sealed(fingerprint: Fingerprint, tensors: Mapping[str, torch.Tensor]) -> list[memoryview]:
    """Returns the bytes of a file, in pieces; the checksum is computed with zeros in its own place.

    Args:
        fingerprint: Of what the tensors were computed from.
        tensors: Those of `LAYOUT`, on any device, and any others.
    """
    rows = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "rows": str(len(rows["spread"])),
        "checksum": _UNSEALED.decode(),
        **fingerprint.facts,
    }
    data = save(rows, metadata)
    view, at = memoryview(data), data.index(_MARK) + len(_MARK)
    seal = hashlib.sha256(data).hexdigest().encode()
    return [view[:at], memoryview(seal), view[at + len(seal) :]]


def unsealed(data: bytes, fingerprint: Fingerprint) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file's bytes, after every check.

    Raises:
        UnusableError: If they are not what was saved under this fingerprint.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    metadata = read_metadata(data[8:end])
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise UnusableError(f"is not of format {FORMAT_VERSION} of this store")
    at = data.find(_MARK, 8, end) + len(_MARK)
    after = at + len(_UNSEALED)
    view, content = memoryview(data), hashlib.sha256()
    for part in (view[:at], _UNSEALED, view[after:]):
        content.update(part)
    if content.hexdigest().encode() != data[at:after]:
        raise UnusableError("is damaged: its checksum does not match its content")
    if metadata.get("key") != fingerprint.key:
        raise UnusableError(f"holds the rows of another space (of {metadata.get('model')})")
    try:
        tensors = load(data)
    except SafetensorError as problem:
        raise UnusableError(f"is not a safetensors file ({problem})") from problem
    if wrong := shape_problem(fingerprint, tensors):
        raise UnusableError(f"does not fit: {wrong}")
    return tensors


def read_metadata(header: bytes) -> dict[str, Any]:
    """Returns the metadata in a safetensors header.

    Raises:
        UnusableError: If there is none.
    """
    try:
        metadata = json.loads(header)["__metadata__"]
    except (ValueError, LookupError, TypeError, RecursionError) as problem:
        raise UnusableError("has no header of this store: it is damaged, or another program's") from problem
    return metadata if isinstance(metadata, dict) else {}


def shape_problem(fingerprint: Fingerprint, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Returns what does not fit `LAYOUT` or the fingerprint, or None."""
    sizes = {"tokens": fingerprint.tokens}
    for name, dimensions in LAYOUT.items():
        if name not in tensors:
            return f"{name} is missing"
        shape = list(tensors[name].shape)
        for dimension, size in zip(dimensions, shape, strict=False):
            sizes.setdefault(dimension, size)
        expected = [sizes.get(dimension) for dimension in dimensions]
        if shape != expected:
            return f"{name} has shape {shape} where {' x '.join(dimensions)} is {expected}"
    if sizes["entries"] > fingerprint.entries:
        return f"rows have {sizes['entries']} entries, but at most {fingerprint.entries} are allowed"
    return None
