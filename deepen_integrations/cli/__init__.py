"""The `deepen` command."""

from __future__ import annotations

import sys

from deepen_integrations.extras import install_command

_EXTRA = ("typer", "rich")


def app() -> None:
    """Runs `deepen` with the arguments of the process, or exits with the extra that is missing."""
    try:
        from deepen_integrations.cli.commands import commands  # noqa: PLC0415 (needs the extra)
        from deepen_integrations.cli.program import run  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        sys.exit(f"deepen needs {package}: {install_command('cli')}")
    sys.exit(run(commands))
