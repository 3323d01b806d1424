"""The input embeddings in a GGUF file, for strategies that compare tokens by them."""

from __future__ import annotations

import mmap

import torch

from deepen_core.members.llama_cpp.header import GgufHeader


def read_embeddings(header: GgufHeader) -> torch.Tensor:
    """Reads and dequantises them.

    Returns:
        Float32 [vocabulary, width].
    """
    import gguf  # noqa: PLC0415 (an extra)
    import numpy as np  # noqa: PLC0415 (as above)

    found = header.tensors["token_embd.weight"]
    with header.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        raw = np.frombuffer(mapped[found.start : found.start + found.size], dtype=np.uint8)
    lines = raw.reshape(found.shape[0], -1)
    weights = gguf.quants.dequantize(lines, gguf.GGMLQuantizationType(found.type))
    return torch.from_numpy(np.array(weights, dtype=np.float32)).view(found.shape)
