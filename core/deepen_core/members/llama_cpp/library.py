"""llama.cpp's C functions, in the shared library of the package `xllamacpp`."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from deepen_core.errors import ConfigurationError, brief
from deepen_core.members.llama_cpp.layout import CONTEXT, MODEL, defaults
from deepen_core.members.llama_cpp.log import FUNCTION, LogLines

PACKAGE = "xllamacpp"
WAY_OUT = "pip install 'deepen-integrations[gguf]'"
_SUFFIXES = ("so", "pyd", "dylib")


class Batch(ctypes.Structure):
    """`llama_batch`: tokens with their positions, sequences, and whether logits are wanted."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


_IDS = POINTER(c_int32)
_SIGNATURES: dict[str, tuple[Any, ...]] = {  # what is returned, then the arguments; parameters are added in `Library`
    "llama_backend_init": (None,),
    "llama_log_set": (None, FUNCTION, c_void_p),
    "llama_model_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_model_n_params": (ctypes.c_uint64, c_void_p),
    "llama_model_is_recurrent": (c_bool, c_void_p),
    "llama_model_is_hybrid": (c_bool, c_void_p),
    "llama_model_has_encoder": (c_bool, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_vocab_is_eog": (c_bool, c_void_p, c_int32),
    "llama_vocab_fim_pad": (c_int32, c_void_p),
    "llama_vocab_fim_rep": (c_int32, c_void_p),
    "llama_vocab_fim_sep": (c_int32, c_void_p),
    "llama_tokenize": (c_int32, c_void_p, c_char_p, c_int32, _IDS, c_int32, c_bool, c_bool),
    "llama_free": (None, c_void_p),
    "llama_n_ctx": (c_uint32, c_void_p),
    "llama_n_ctx_seq": (c_uint32, c_void_p),
    "llama_n_batch": (c_uint32, c_void_p),
    "llama_n_seq_max": (c_uint32, c_void_p),
    "llama_set_n_threads": (None, c_void_p, c_int32, c_int32),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_clear": (None, c_void_p, c_bool),
    "llama_memory_seq_rm": (c_bool, c_void_p, c_int32, c_int32, c_int32),
    "llama_memory_seq_cp": (None, c_void_p, c_int32, c_int32, c_int32, c_int32),
    "llama_memory_seq_pos_max": (c_int32, c_void_p, c_int32),
    "llama_state_seq_get_size": (c_size_t, c_void_p, c_int32),
    "llama_state_seq_get_data": (c_size_t, c_void_p, POINTER(c_uint8), c_size_t, c_int32),
    "llama_state_seq_set_data": (c_size_t, c_void_p, POINTER(c_uint8), c_size_t, c_int32),
    "llama_decode": (c_int32, c_void_p, Batch),
    "llama_get_logits": (POINTER(c_float), c_void_p),
}


class Library:
    """The functions of llama.cpp, as attributes.

    Args:
        path: The shared library.

    Attributes:
        log: What it reports.
        model_defaults: `llama_model_params`, to be copied and changed.
        context_defaults: `llama_context_params`, to be copied and changed.

    Raises:
        ConfigurationError: If it cannot be loaded, lacks a function, or its parameters have an unknown layout.
    """

    def __init__(self, path: Path) -> None:
        self.log = LogLines()
        try:
            self._loaded = ctypes.CDLL(str(path))
            for name, (returned, *arguments) in _SIGNATURES.items():
                function = getattr(self._loaded, name)
                function.restype, function.argtypes = returned, arguments
            model = defaults(self._loaded.llama_model_default_params, (MODEL,))
            context = defaults(self._loaded.llama_context_default_params, CONTEXT)
        except (OSError, AttributeError) as problem:
            raise _not_usable(brief(problem)) from problem
        if model is None or context is None:
            raise _not_usable("its parameters have a layout that is not known here")
        self.model_defaults, self.context_defaults = model, context
        self._loaded.llama_model_load_from_file.argtypes = (c_char_p, type(model))
        self._loaded.llama_model_load_from_file.restype = c_void_p
        self._loaded.llama_init_from_model.argtypes = (c_void_p, type(context))
        self._loaded.llama_init_from_model.restype = c_void_p
        self.llama_log_set(self.log.callback, None)
        self.llama_backend_init()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loaded"], name)


def _not_usable(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"llama.cpp of {PACKAGE} {importlib.metadata.version(PACKAGE)} cannot be used ({why}): GGUF members need a "
        f"version that these releases know, {WAY_OUT} installs one."
    )


def find_library() -> Path | None:
    """Returns the shared library of `xllamacpp`, without importing the package; None if it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    folders = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
    places = (
        path for folder in folders for suffix in _SUFFIXES for path in sorted(folder.glob(f"{PACKAGE}*.{suffix}"))
    )
    return next(places, None)


@functools.cache
def load_library(path: Path) -> Library:
    """Returns the functions of llama.cpp; the library stays loaded.

    Args:
        path: As `find_library` returns it.

    Raises:
        ConfigurationError: If it cannot be used.
    """
    return Library(path)
