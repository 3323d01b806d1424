"""Optional frameworks: the error for a missing one names the extra that installs it."""

from __future__ import annotations

from importlib import import_module

EXTRAS = {
    "langchain": "deepen_integrations.langchain",
    "llama-index": "deepen_integrations.llama_index",
    "cli": "the command deepen",
    "structured": "tools, structured output and constraints (json_schema, regex, choices, grammar)",
    "voting": "votes by chrF (by='mbr')",
    "serve": "the command deepen serve",
    "peft": "adapters of members, such as LoRA (MemberConfig.adapter)",
    "gguf": "members that are GGUF files, run by llama.cpp",
    "ray": "members in Ray actors (MemberConfig.ray) and the server as a deployment of Ray Serve",
    "eval": "lm-evaluation-harness (deepen eval --harness) and plots",
}
"""What each extra is needed for."""
DISTRIBUTION = "deepen-integrations"
"""The name under which both packages are installed."""


def install_command(extra: str) -> str:
    """Returns the command that installs an extra."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


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
        hint = f"{EXTRAS[extra]} needs it: {install_command(extra)}"
        raise ImportError(f"{missing.name} is not installed, and {hint}", name=missing.name) from missing
