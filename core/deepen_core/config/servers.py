"""Where a member's model runs, if a server has it."""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from deepen_core.config.base import Options
from deepen_core.errors import ConfigurationError

KEY_VARIABLE = "DEEPEN_SERVER_KEY"

ServerApi = Literal["llama.cpp", "vllm"]


class ServerConfig(Options):
    """A server that computes a member's distributions, and how it is asked."""

    url: str = Field(min_length=1)
    """Its address, such as "http://localhost:8080"; a path before its endpoints is kept, and a last "/v1" is not."""
    api: ServerApi | None = None
    """What the server is: "llama.cpp" or "vllm"; by default it is asked."""
    model: str | None = Field(default=None, min_length=1)
    """The name of the model, on a vLLM server with several."""
    api_key: SecretStr | None = None
    """Sent as a bearer token; by default the environment variable DEEPEN_SERVER_KEY."""
    top_k: int = Field(default=512, ge=1, strict=True)
    """Number of tokens whose probabilities are fetched at each step, the most probable ones; the others share the rest.
    At most what a vLLM server allows (`--max-logprobs`)."""
    timeout: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds for a request, which is repeated once."""

    @field_validator("url")
    @classmethod
    def _address(cls, given: str) -> str:
        try:
            parts = urlsplit(given.strip())
            host, _ = parts.hostname, parts.port
        except ValueError as problem:
            raise ValueError(f"it is not an address ({problem})") from problem
        if parts.username is not None or parts.password is not None:  # an error of pydantic would show them
            raise ConfigurationError("The address of a server holds a user or a password: give api_key instead.")
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("give an address such as 'http://localhost:8080'")
        if parts.query or parts.fragment:
            raise ValueError("an address has no ? and no # in it")
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"

    @field_validator("api_key")
    @classmethod
    def _sendable(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None:
            _check_key(given.get_secret_value())
        return given

    def key(self) -> str | None:
        """Returns the key that is sent.

        Raises:
            ConfigurationError: If that of the environment cannot be sent.
        """
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        found = os.environ.get(KEY_VARIABLE)
        if found:
            _check_key(found)
        return found or None


def _check_key(key: str) -> None:
    """Rejects what no header may hold; the library that sends it would show it in an error."""
    if not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise ConfigurationError("The key of a server must be letters, digits and signs of ASCII.")


def server_config(given: object) -> object:
    """Returns what `ServerConfig` is made of, for an address by itself."""
    return {"url": given} if isinstance(given, str) else given
