"""What a member is loaded from, as a path."""

from __future__ import annotations

from pathlib import Path

from deepen_core.errors import ConfigurationError


def model_path(model: str) -> Path:
    """Returns what a member is loaded from as a path."""
    try:
        path = Path(model).expanduser()
        path.resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as problem:
        raise ConfigurationError(
            f"{model!r} cannot be looked up as a path ({problem}): give a model folder or a hub id."
        ) from problem
    return path
