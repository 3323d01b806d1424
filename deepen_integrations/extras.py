"""Optional frameworks: the error for a missing one names the extra that installs it."""

from __future__ import annotations

from importlib import import_module


def require(module: str, extra: str) -> None:
    """Imports a framework.

    Args:
        module: The framework's module, such as `langchain_core`.
        extra: The extra of `deepen-integrations` that installs it.

    Raises:
        ImportError: If the module is not installed. The message names the extra.
    """
    try:
        import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{module}.".startswith(f"{missing.name}."):
            raise
        hint = f'pip install "deepen-integrations[{extra}]"'
        raise ImportError(f"{missing.name} is not installed: {hint}", name=missing.name) from missing
