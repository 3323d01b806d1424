"""Reads the JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers.limits import MAX_BYTES


def small_text(path: Path) -> str:
    """Reads a small text file.

    Raises:
        OSError: If it cannot be read, is not a regular file, or is larger than small files are.
        ValueError: If it is not UTF-8.
    """
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise OSError(f"{path} is not a file of at most {MAX_BYTES:,} bytes")
    return path.read_text(encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that contains an object.

    Raises:
        ModelFilesError: If it cannot be read, is not JSON or contains something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise ModelFilesError(f"{path} cannot be read as JSON ({problem}): fetch the file again.") from problem
    if not isinstance(content, dict):
        raise ModelFilesError(
            f"{path} holds a JSON {type(content).__name__} where an object is needed: fetch the file again."
        )
    return content
