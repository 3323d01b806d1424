"""The largest files and numbers of a model folder that are read; none costs memory or time before it is checked."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepen_core.errors import ModelFilesError

MAX_BYTES = 2**26
"""Of a small file. The largest in use are indices of weights, with a sixteenth of that."""
MAX_TOKENIZER_BYTES = 2**28
"""Of a file of a tokenizer; those of 256,000 tokens have an eighth of that."""
MAX_HEADER_BYTES = 100_000_000
"""Of the header of a safetensors file, as in its own library."""
MAX_LAYERS = 1024
"""Each is built before weights are looked at. The deepest models have 200."""
MAX_EXPERTS = 2**17
"""Of all layers together. The widest models have a quarter of that."""

_SMALL = ("*.json", "*.jinja", "*.py", "additional_chat_templates/*")
_OF_TOKENIZERS = ("tokenizer.json", "vocab.json", "*.model", "*.tiktoken", "*.txt")
_WEIGHTS = ("*.safetensors",)
_LAYERS = re.compile(r"(n|num|number)_(\w+_)?(layers?|blocks)|(encoder|decoder)_layers|layers|depth")
_EXPERTS = re.compile(r"(n|num|number)_(\w+_)?experts")


def check_files(folder: Path) -> None:
    """Rejects what would be read without an end, or is too large to be what its name says.

    Args:
        folder: A model folder.

    Raises:
        ModelFilesError: If a file that is read is a pipe or a device, or a small file is large.
    """
    for pattern in (*_SMALL, *_OF_TOKENIZERS, *_WEIGHTS):
        for path in folder.glob(pattern):
            check_file(path, _most(path))


def _most(path: Path) -> int | None:
    if any(path.match(pattern) for pattern in _OF_TOKENIZERS):
        return MAX_TOKENIZER_BYTES
    return None if any(path.match(pattern) for pattern in _WEIGHTS) else MAX_BYTES


def check_file(path: Path, most: int | None) -> None:
    """Rejects a file that is not a regular one, or too large.

    Args:
        path: The file.
        most: Its bytes; None for no limit.

    Raises:
        ModelFilesError: If it is rejected.
    """
    try:
        found = path.stat()
    except OSError:  # a link to nothing is as if it were not there
        return
    if stat.S_ISDIR(found.st_mode):
        return
    if not stat.S_ISREG(found.st_mode):
        raise ModelFilesError(f"{path} is not a regular file, but a pipe, a device or a socket: fetch the file again.")
    if most is not None and found.st_size > most:
        raise ModelFilesError(
            f"{path} has {found.st_size:,} bytes, and at most {most:,} are read of a file of its kind: fetch it again."
        )


def check_repeats(path: Path, config: Mapping[str, Any]) -> None:
    """Rejects a configuration with far more layers or experts than any model has.

    Args:
        path: The file, for error messages.
        config: Its content.

    Raises:
        ModelFilesError: Naming the field and the limit.
    """
    numbers = [(name, value) for name, value in _fields(config) if isinstance(value, int)]
    layers = [(value, name) for name, value in numbers if _LAYERS.fullmatch(name)]
    experts = [(value, name) for name, value in numbers if _EXPERTS.fullmatch(name)]
    most, named = max(layers, default=(1, ""))
    if most > MAX_LAYERS:
        raise _too_many(path, named, most, f"{MAX_LAYERS:,} layers")
    each, named = max(experts, default=(0, ""))
    if each * max(1, most) > MAX_EXPERTS:
        raise _too_many(path, named, each, f"{MAX_EXPERTS:,} experts in all layers")


def _too_many(path: Path, name: str, value: int, limit: str) -> ModelFilesError:
    return ModelFilesError(f"{path} has {name} {value}, and at most {limit} are built: correct it or fetch it again.")


def _fields(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the fields of a configuration and of those inside it."""
    waiting: list[Any] = [config]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            yield from ((str(name), value) for name, value in one.items())
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
