"""One context of llama.cpp: the keys and values of several sequences, and the decoding of batches of their ids."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deepen_core.errors import ConfigurationError
from deepen_core.members.llama_cpp.library import Batch
from deepen_core.members.llama_cpp.model import LlamaModel

BATCH = 128
"""Ids of one decode at most; buffers grow with it."""

_Ids = ctypes.POINTER(ctypes.c_int32)
_F32, _F16 = 0, 1  # ggml's types of keys and values
_NO_ROOM = 1  # what llama_decode returns if it finds no free places


@dataclass(frozen=True)
class Part:
    """New ids of one sequence.

    Attributes:
        number: The sequence's number.
        start: Position of the first of them.
        ids: The ids.
        keep: Logits are wanted at this many places at the end.
    """

    number: int
    start: int
    ids: Sequence[int]
    keep: int


class LlamaContext:
    """A context with a fixed number of places, shared by its sequences; its memory is freed with it.

    Args:
        model: The model.
        places: Number of ids whose keys and values it holds.
        sequences: Number of sequences.
        outputs: Most logits of a batch.
        exact: Keep keys and values in float32, and attend to them in it; else in float16.

    Raises:
        ConfigurationError: If llama.cpp makes another one than asked for.
        MemoryError: If it makes none.
    """

    def __init__(self, model: LlamaModel, places: int, sequences: int, outputs: int, *, exact: bool) -> None:
        self._model = model
        self._library = model.library
        self.outputs = outputs
        self.sequences = sequences
        defaults = self._library.context_defaults
        given: Any = type(defaults).from_buffer_copy(defaults)
        given.n_ctx, given.n_seq_max = places, sequences
        given.n_batch = given.n_ubatch = BATCH
        given.n_outputs_max = given.n_outputs_max_per_seq = outputs
        given.n_threads = given.n_threads_batch = torch.get_num_threads()
        given.type_k = given.type_v = _F32 if exact else _F16
        given.flash_attn_type = int(not exact)  # which computes in float16
        given.swa_full = given.kv_unified = True
        self._library.log.forget()
        self._pointer = self._library.llama_init_from_model(model.pointer, given)
        if not self._pointer:
            raise MemoryError(
                f"llama.cpp makes no context of {places} ids ({self._library.log.told or 'no reason given'})"
            )
        # The model is held until then: garbage is collected in any order.
        weakref.finalize(self, _free, model, self._pointer)
        self._memory = self._library.llama_get_memory(self._pointer)
        self.places = int(self._library.llama_n_ctx_seq(self._pointer))
        made = (self.places >= places, self._library.llama_n_seq_max(self._pointer) == sequences)
        if not (all(made) and self._library.llama_n_batch(self._pointer) == BATCH):
            raise ConfigurationError(
                f"llama.cpp was asked for a context of {places} ids in {sequences} sequences, and made one of "
                f"{self.places}: this version of xllamacpp is not supported."
            )
        self._numbers = (ctypes.c_int32 * sequences)(*range(sequences))
        step, at = ctypes.sizeof(ctypes.c_int32), ctypes.addressof(self._numbers)
        self._named = [ctypes.cast(at + step * number, _Ids) for number in range(sequences)]

    def decode(self, parts: Iterable[Part]) -> torch.Tensor | None:
        """Runs new ids of some sequences together.

        Args:
            parts: At most `BATCH` ids, of different sequences.

        Returns:
            The logits at the wanted places in order, float32 [places, vocabulary]; None if there is no room for the
            ids, and nothing has changed.

        Raises:
            RuntimeError: If llama.cpp fails; what the sequences hold is unknown then.
        """
        tokens: list[int] = []
        positions: list[int] = []
        numbers: list[Any] = []
        wanted: list[int] = []
        for part in parts:
            tokens += part.ids
            positions += range(part.start, part.start + len(part.ids))
            numbers += [self._named[part.number]] * len(part.ids)
            wanted += [0] * (len(part.ids) - part.keep) + [1] * part.keep
        count = len(tokens)
        ints = ctypes.c_int32 * count
        batch = Batch(
            count,
            ints(*tokens),
            None,
            ints(*positions),
            ints(*[1] * count),
            (_Ids * count)(*numbers),
            (ctypes.c_int8 * count)(*wanted),
        )
        threads = torch.get_num_threads()
        self._library.llama_set_n_threads(self._pointer, threads, threads)
        self._library.log.forget()
        failed = self._library.llama_decode(self._pointer, batch)
        if failed == _NO_ROOM:
            return None
        if failed:
            raise RuntimeError(f"llama_decode failed with {failed} ({self._library.log.told or 'no reason given'})")
        lines, size = sum(wanted), self._model.vocabulary_size
        if not lines:
            return torch.empty(0, size)
        at = ctypes.addressof(self._library.llama_get_logits(self._pointer).contents)
        held = torch.frombuffer((ctypes.c_float * (lines * size)).from_address(at), dtype=torch.float32)
        return held.clone().view(lines, size)  # llama.cpp writes the next ones to the same place

    def cut(self, number: int, length: int) -> None:
        """Removes the ids of a sequence from a position on."""
        self._library.llama_memory_seq_rm(self._memory, number, length, -1)

    def copy(self, source: int, target: int, length: int) -> None:
        """Lets a sequence, which is empty, begin with the first ids of another one, whose places they share."""
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def move(self, number: int, other: LlamaContext) -> None:
        """Copies what a sequence holds to another context.

        Raises:
            RuntimeError: If llama.cpp fails.
        """
        size = self._library.llama_state_seq_get_size(self._pointer, number)
        state = (ctypes.c_uint8 * size)()
        got = self._library.llama_state_seq_get_data(self._pointer, state, size, number)
        if not (got and self._library.llama_state_seq_set_data(other._pointer, state, got, number)):
            raise RuntimeError(f"llama.cpp cannot move a sequence to a larger context ({self._library.log.told})")


def _free(model: LlamaModel, pointer: int) -> None:
    model.library.llama_free(pointer)
