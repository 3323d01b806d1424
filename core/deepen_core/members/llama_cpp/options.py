"""Which options of a member apply to a GGUF file."""

from __future__ import annotations

from deepen_core.config import MemberConfig
from deepen_core.errors import ConfigurationError

_TRANSFORMERS_ONLY = ("adapter", "dtype", "revision", "source_language", "target_language")
_PLACES = "n_ctx"
_USUAL_PLACES = 32_768


def check_options(config: MemberConfig) -> None:
    """Rejects options that have no meaning for a GGUF file.

    Raises:
        ConfigurationError: Naming them.
    """
    given = [name for name in _TRANSFORMERS_ONLY if getattr(config, name) is not None]
    given += ["trust_remote_code"] if config.trust_remote_code else []
    if given:
        raise ConfigurationError(
            f"{' and '.join(given)} cannot be set for {config.model}, a GGUF file: it is run as it is stored. Leave "
            f"{'them' if len(given) > 1 else 'it'} out, or give the model's folder in transformers format."
        )
    if config.device not in (None, "cpu"):
        raise ConfigurationError(
            f"{config.model} cannot run on {config.device!r}: GGUF members run on the CPU. Use device='cpu', or give "
            "the model's folder in transformers format."
        )
    if unknown := sorted(config.model_kwargs.keys() - {_PLACES}):
        raise ConfigurationError(
            f"model_kwargs of {config.model} has {', '.join(unknown)}: a GGUF member takes {_PLACES} only."
        )
    places = config.model_kwargs.get(_PLACES, _USUAL_PLACES)
    if isinstance(places, bool) or not isinstance(places, int) or places < 2:
        raise ConfigurationError(
            f"{_PLACES} of {config.model} is {places!r}: give the number of ids, of all requests together, whose keys "
            "and values are held, at least 2."
        )


def given_places(config: MemberConfig) -> int | None:
    """Returns how many ids' keys and values are held, if the member's options say."""
    places = config.model_kwargs.get(_PLACES)
    return places if isinstance(places, int) else None


def most_places(config: MemberConfig, window: int) -> int:
    """Returns how many ids' keys and values are held at most, of all requests together.

    Args:
        config: The member.
        window: Its context window, which one request may fill.
    """
    return given_places(config) or max(window, _USUAL_PLACES)
