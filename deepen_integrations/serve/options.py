"""What a server allows: keys, sizes and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator
from typing_extensions import Self

from deepen_core.config.base import Options
from deepen_core.errors import ConfigurationError

ANSWERS_AT_FULL_PACE = 20
"""Number of answers under way up to which `stream_interval_s` counts as it is; beyond it, it grows in proportion."""


class ServeOptions(Options):
    """Limits of a server. Unknown fields are rejected."""

    api_keys: tuple[str, ...] = Field(default=(), repr=False)
    """Keys of which a client must give one, as `Authorization: Bearer KEY`. Without any, every client is served."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Maximum size of a request; a larger one gets 413."""
    max_answers: int = Field(default=256, ge=1)
    """Maximum number of answers that are decoded or wait, over all requests and ensembles; what would exceed it gets
    429. How many are decoded together is `max_batch_size` of the ensemble."""
    stream_interval_s: float = Field(default=0.05, ge=0)
    """Least number of seconds between two events of a stream. Tokens that come sooner are sent with the first one that
    comes after it, or at the end; 0 for an event with every step. While more than 20 answers are under way, it grows
    in proportion to their number, so that more streams do not mean more events a second."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds in which a request must have arrived; a slower one gets 408."""
    shutdown_s: int = Field(default=30, ge=0)
    """Seconds that running requests have to end once the server is asked to stop; then their connections are cut."""

    @field_validator("api_keys")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(key and key.isascii() and key.isprintable() and " " not in key for key in value):
            raise ValueError("a key is not empty, and of printable ASCII characters without spaces")
        return value

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Returns the options.

        Raises:
            ConfigurationError: For an unknown option or a value outside its range.
        """
        options: Self = cls.parse(values, ConfigurationError)
        return options
