"""Options of other models, which users' code often sets: translated, or reported once as without effect."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from deepen_core.errors import SamplingError

_log = logging.getLogger("deepen_integrations")

_OTHER_NAMES = {
    "max_completion_tokens": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "stop_sequences": "stop",
    "repeat_penalty": "repetition_penalty",
    "request_timeout": "timeout",
    "n_ctx": "max_context_window",
    "num_ctx": "max_context_window",
}
"""Names of other models' options, and the option here."""
_NO_SERVER = "there is no server here"
_WITHOUT_EFFECT = {
    "api_key": _NO_SERVER,
    "service_tier": _NO_SERVER,
    "store": _NO_SERVER,
    "user": _NO_SERVER,
    "safety_identifier": _NO_SERVER,
    "prompt_cache_key": _NO_SERVER,
    "metadata": _NO_SERVER,
    "keep_alive": "the models stay loaded until close()",
    "max_retries": "a local model is not retried, because the same request fails the same way again",
    "stream_usage": "every answer reports its usage, streamed or not",
    "stream_options": "every answer reports its usage, streamed or not",
    "parallel_tool_calls": "no tools were given",
    "strict": "answers and arguments always follow their schemas",
}
"""Options that change nothing here, and why."""
_reported: set[str] = set()


def own_name(name: str) -> str:
    """Returns this package's name of an option."""
    return _OTHER_NAMES.get(name, name)


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options under this package's names, without those that are None and those that have no effect.

    The logger `deepen_integrations` reports each option that has no effect once per process.

    Args:
        options: As users give them. Names that are unknown here are returned as they are.

    Raises:
        SamplingError: If an option is given twice, by two of its names, or several answers are asked for.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or (name == "n" and value == 1):
            continue
        if name == "n":
            raise SamplingError(
                f"n is {value!r}, but a call returns one answer: make several calls, each with another seed. Only "
                "generate of the models for LangChain accepts n."
            )
        if name in _WITHOUT_EFFECT:
            _report(name)
            continue
        known = own_name(name)
        if known in found or (known != name and known in options and options[known] is not None):
            raise SamplingError(f"Give {known} or {name}, not both: they are names of one option.")
        found[known] = value
    if "repeat_last_n" in found:  # of llama.cpp and Ollama, where -1 is all
        last = found.pop("repeat_last_n")
        found = found if last == -1 else {**found, "penalty_window": last}
    return _logprobs(found)


def _logprobs(options: dict[str, Any]) -> dict[str, Any]:
    """Reads `logprobs` and `top_logprobs` as OpenAI does, where the first is a bool."""
    if "top_logprobs" not in options and not isinstance(options.get("logprobs"), bool):
        return options
    top, wanted = options.pop("top_logprobs", 0), options.pop("logprobs", True)
    if wanted is False and top:
        raise SamplingError(f"logprobs is False and top_logprobs is {top!r}: alternatives need logprobs=True.")
    return {**options, "logprobs": None if wanted is False else top}


def _report(name: str) -> None:
    if name not in _reported:
        _reported.add(name)
        _log.warning("The option %r has no effect: %s.", name, _WITHOUT_EFFECT[name])
