"""Loads the weights of a GGUF file, and only what is needed of it."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from deepen_core.errors import ConfigurationError
from deepen_core.members.llama_cpp.header import TOKENS, GgufHeader
from deepen_core.members.llama_cpp.library import Library
from deepen_core.members.llama_cpp.model import LlamaModel

_MAPPINGS = Path("/proc/self/maps")
_READ_ONLY = "r--s"


def load_weights(library: Library, header: GgufHeader) -> LlamaModel:
    """Returns a model without its vocabulary, which was read before, and takes a tenth of the weights or more.

    Raises:
        ConfigurationError: If llama.cpp makes another vocabulary of it.
        ModelFilesError: If llama.cpp does not load it.
    """
    tokens = header.lengths[TOKENS]
    replaced: dict[str, int | str] = {"tokenizer.ggml.model": "none", f"{header.architecture}.vocab_size": tokens}
    model = LlamaModel(library, header.path, replaced=replaced)
    if model.vocabulary_size != tokens:
        raise ConfigurationError(
            f"llama.cpp has {model.vocabulary_size} tokens for {header.path}, which has {tokens}: this version of "
            "xllamacpp is not supported."
        )
    give_back(header.path)
    return model


def give_back(path: Path) -> None:
    """Lets Linux take the pages of a mapped file out of this process; each comes back when it is read.

    llama.cpp has all of them read in advance. Those of weights that it has stored in another order are never read
    again, nor are those of the embeddings of most tokens.
    """
    if not _MAPPINGS.exists():
        return
    system = ctypes.CDLL(None)
    system.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    name = str(path.resolve())
    for line in _MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines():
        place, rights, *_, mapped = line.split(maxsplit=5)
        if mapped == name and rights == _READ_ONLY:
            start, end = (int(number, 16) for number in place.split("-"))
            system.madvise(start, end - start, mmap.MADV_DONTNEED)
