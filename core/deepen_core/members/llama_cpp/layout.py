"""The layout of llama.cpp's parameters, which changes with its version, and how it is recognised.

Each structure is asked for its defaults, and accepted only if they are what is expected at every place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

_INT, _UINT, _FLOAT, _PTR, _BOOL = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_void_p, ctypes.c_bool
_ROOM = 64  # bytes behind a structure, in case that of the library is larger

_Fields = list[tuple[str, Any, Any]]
"""Name, type and default of each field; a default of None may be anything."""

MODEL: _Fields = [
    ("devices", _PTR, 0),
    ("tensor_buft_overrides", _PTR, 0),
    ("n_gpu_layers", _INT, -1),
    ("split_mode", _INT, 1),
    ("load_mode", _INT, -1),
    ("lazy_mode", _INT, 1),
    ("main_gpu", _INT, 0),
    ("tensor_split", _PTR, 0),
    ("progress_callback", _PTR, 0),
    ("progress_callback_user_data", _PTR, 0),
    ("kv_overrides", _PTR, 0),
    ("vocab_only", _BOOL, False),
    ("check_tensors", _BOOL, False),
    ("use_extra_bufts", _BOOL, True),
    ("no_host", _BOOL, False),
    ("no_alloc", _BOOL, False),
    ("load_mtp", _BOOL, False),
]
"""`llama_model_params`."""

_BEGINNING: _Fields = [
    ("n_ctx", _UINT, 512),
    ("n_batch", _UINT, 2048),
    ("n_ubatch", _UINT, 512),
    ("n_seq_max", _UINT, 1),
    ("n_rs_seq", _UINT, 0),
    ("n_outputs_max", _UINT, 0),
    ("n_outputs_max_per_seq", _UINT, 1),
    ("n_threads", _INT, 4),
    ("n_threads_batch", _INT, 4),
    ("ctx_type", _INT, 0),
    ("rope_scaling_type", _INT, -1),
    ("pooling_type", _INT, -1),
    ("attention_type", _INT, -1),
    ("flash_attn_type", _INT, -1),
    ("rope_freq_base", _FLOAT, 0.0),
    ("rope_freq_scale", _FLOAT, 0.0),
    ("yarn_ext_factor", _FLOAT, -1.0),
    ("yarn_attn_factor", _FLOAT, -1.0),
    ("yarn_beta_fast", _FLOAT, -1.0),
    ("yarn_beta_slow", _FLOAT, -1.0),
    ("yarn_orig_ctx", _UINT, 0),
    ("defrag_thold", _FLOAT, -1.0),
    ("cb_eval", _PTR, 0),
    ("cb_eval_user_data", _PTR, 0),
    ("type_k", _INT, 1),
    ("type_v", _INT, 1),
    ("abort_callback", _PTR, 0),
    ("abort_callback_data", _PTR, 0),
]
_END: _Fields = [
    ("embeddings", _BOOL, False),
    ("offload_kqv", _BOOL, True),
    ("no_perf", _BOOL, True),
    ("op_offload", _BOOL, True),
    ("swa_full", _BOOL, True),
    ("kv_unified", _BOOL, False),
    ("samplers", _PTR, 0),
    ("n_samplers", ctypes.c_size_t, 0),
    ("ctx_other", _PTR, 0),
]
CONTEXT: tuple[_Fields, ...] = (
    [*_BEGINNING, *_END],  # September 2026
    [*_BEGINNING, ("unknown", _PTR, 0), *_END],  # October 2026
)
"""`llama_context_params`, of several versions."""


class _Replacing(ctypes.Union):
    _fields_ = (("number", ctypes.c_int64), ("float", ctypes.c_double), ("text", ctypes.c_char * 128))


class Override(ctypes.Structure):
    """`llama_model_kv_override`: a value in place of one that the file has. One without a name ends a list of them."""

    _fields_ = (("kind", _INT), ("name", ctypes.c_char * 128), ("value", _Replacing))

    @classmethod
    def of(cls, name: str, value: int | str) -> Override:
        """Replaces one value."""
        if isinstance(value, str):
            return cls(3, name.encode(), _Replacing(text=value.encode()))
        return cls(0, name.encode(), _Replacing(number=value))


def defaults(function: Any, layouts: tuple[_Fields, ...]) -> ctypes.Structure | None:
    """Returns the defaults of a structure, in the layout that they fit; None if they fit none.

    Args:
        function: Returns the structure, as a symbol of the library that was not used before.
        layouts: Those that are known.
    """
    for fields in layouts:
        whole = _structure(fields)
        function.restype = _with_room(whole)
        given = function().given
        if all(_as_number(getattr(given, name)) == default for name, _, default in fields):
            return whole.from_buffer_copy(given)
    return None


def _structure(fields: _Fields) -> type[ctypes.Structure]:
    members: Mapping[str, Any] = {"_fields_": [(name, kind) for name, kind, _ in fields]}
    return type("Parameters", (ctypes.Structure,), dict(members))


def _with_room(structure: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """Returns the structure with room for what a larger one of the library writes behind it."""
    members = {"_fields_": [("given", structure), ("room", ctypes.c_uint8 * _ROOM)]}
    return type("Roomy", (ctypes.Structure,), members)


def _as_number(value: Any) -> Any:
    return 0 if value is None else value
