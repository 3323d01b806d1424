"""The fingerprint of a relative space: equal only if everything that its rows depend on is equal."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

FORMAT_VERSION = 3
"""Part of every fingerprint: raise it when a file's layout, or the way rows are computed, changes."""

_CHUNK_BYTES = 8 * 2**20  # part of the format, since chunks are hashed separately
_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Fingerprint:
    """Identifies what rows are computed from. Create it with `fingerprint`."""

    key: str
    """64 hexadecimal digits."""
    model: str
    """For people only: the same model under another name has the same key."""
    tokens: int
    """Rows of the embedding matrix."""
    width: int
    anchors: int
    temperature: float
    entries: int
    """Maximum number of entries of a row."""
    dtype: str

    @property
    def file_name(self) -> str:
        """Name of the file in the store."""
        return f"rows-{self.key}.safetensors"

    @property
    def facts(self) -> dict[str, str]:
        """The metadata that the file contains."""
        described = ("key", "model", "tokens", "width", "anchors", "temperature", "entries", "dtype")
        return {name: str(getattr(self, name)) for name in described}


def fingerprint(
    *,
    model: str,
    embeddings: torch.Tensor,
    vocabulary_digest: str,
    anchors: Sequence[bytes],
    temperature: float,
    entries: int,
    dtype: str,
    fixed: torch.Tensor,
) -> Fingerprint:
    """Hashes everything that rows depend on; the result is the same in every process.

    Args:
        model: Its name, for people; not hashed.
        embeddings: The member's input embeddings [vocabulary, width], of any dtype, on any device; every byte counts.
        vocabulary_digest: Hash of the bytes of every token id.
        anchors: The shared byte strings in the order of the columns.
        temperature: The temperature in use, after calibration.
        entries: Maximum number of entries of a row.
        dtype: Of the stored values.
        fixed: Column that a token has all its mass on, or -1, int32 [vocabulary].
    """
    named = b"".join(len(value).to_bytes(8, "little") + value for value in anchors)
    parts = [
        FORMAT_VERSION,
        _tensor_digest(embeddings),
        vocabulary_digest,
        hashlib.sha256(named).hexdigest(),
        float(temperature).hex(),
        entries,
        dtype,
        _tensor_digest(fixed),
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    tokens, width = embeddings.shape
    return Fingerprint(key, model, tokens, width, len(anchors), float(temperature), entries, dtype)


def _tensor_digest(tensor: torch.Tensor) -> str:
    """Returns the SHA-256 over dtype, shape and the digests of all chunks of rows, computed by several threads."""

    def digest(chunk: torch.Tensor) -> bytes:
        return hashlib.sha256(chunk.cpu().contiguous().view(torch.uint8).numpy().data).digest()

    row_bytes = tensor[:1].numel() * tensor.element_size()
    chunks = tensor.split(max(1, _CHUNK_BYTES // max(1, row_bytes)))
    whole = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(digest, chunks):
            whole.update(part)
    return whole.hexdigest()
