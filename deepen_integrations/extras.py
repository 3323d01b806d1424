"""The optional frameworks: a missing one is told by the extra that brings it."""

from __future__ import annotations

from importlib import import_module


def require(module: str, extra: str) -> None:
    """Imports a framework, so that a missing one is an error that says what to install.

    Args:
        module: The framework's module, such as `langchain_core`.
        extra: The extra of `deepen-integrations` that brings it.

    Raises:
        ImportError: If the module is not installed, naming the extra.
    """
    try:
        import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{module}.".startswith(f"{missing.name}."):
            raise
        hint = f'pip install "deepen-integrations[{extra}]"'
        raise ImportError(f"{missing.name} is not installed: {hint}", name=missing.name) from missing
