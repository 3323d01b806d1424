"""A GGUF file as llama.cpp holds it: its vocabulary, or its weights."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen_core.errors import ModelFilesError
from deepen_core.members.llama_cpp.layout import Override
from deepen_core.members.llama_cpp.library import Library

_ROOM = 8  # ids more than bytes that a text may have


class LlamaModel:
    """A loaded model; its memory is freed with it.

    Args:
        library: llama.cpp.
        path: The file, or the first of several.
        vocabulary_only: Load no weights.
        replaced: Values in place of those in the file's header.

    Attributes:
        library: As given.
        pointer: llama.cpp's model.
        vocabulary_size: Number of its tokens, and of its logits.

    Raises:
        ModelFilesError: If llama.cpp does not load it, in its words.
    """

    def __init__(
        self,
        library: Library,
        path: Path,
        *,
        vocabulary_only: bool = False,
        replaced: Mapping[str, int | str] | None = None,
    ) -> None:
        self.library = library
        parameters: Any = type(library.model_defaults).from_buffer_copy(library.model_defaults)
        parameters.vocab_only = vocabulary_only
        parameters.n_gpu_layers = 0
        overrides = [Override.of(name, value) for name, value in (replaced or {}).items()]
        listed = (Override * (len(overrides) + 1))(*overrides)  # which must live until the model is loaded
        parameters.kv_overrides = ctypes.addressof(listed)
        library.log.forget()
        self.pointer = library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.pointer:
            told = library.log.told or "it does not say why"
            raise ModelFilesError(
                f"llama.cpp cannot load {path} ({told}): fetch the file again, or install a newer version with `pip "
                "install --upgrade xllamacpp`, if the model is newer."
            )
        weakref.finalize(self, library.llama_model_free, self.pointer)
        self._vocabulary = library.llama_model_get_vocab(self.pointer)
        self.vocabulary_size = int(library.llama_vocab_n_tokens(self._vocabulary))

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return int(self.library.llama_model_n_params(self.pointer))

    @property
    def has_state(self) -> bool:
        """Whether it keeps a recurrent state, which cannot be shortened."""
        library = self.library
        return bool(library.llama_model_is_recurrent(self.pointer) or library.llama_model_is_hybrid(self.pointer))

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return bool(self.library.llama_model_has_encoder(self.pointer))

    def stop_ids(self) -> list[int]:
        """Returns every id that ends a text or a turn, without those that end a file in infilling."""
        library, vocabulary = self.library, self._vocabulary
        infilling = (library.llama_vocab_fim_pad, library.llama_vocab_fim_rep, library.llama_vocab_fim_sep)
        others = {find(vocabulary) for find in infilling}
        ends = library.llama_vocab_is_eog
        return [i for i in range(self.vocabulary_size) if i not in others and ends(vocabulary, i)]

    def tokenize(self, text: str) -> list[int]:
        """Returns the ids of a text, without BOS; control tokens in it are plain text."""
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + _ROOM))()
        count = self.library.llama_tokenize(self._vocabulary, raw, len(raw), ids, len(ids), False, False)
        return list(ids[: max(0, count)])
