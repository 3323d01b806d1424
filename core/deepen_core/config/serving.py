"""How an ensemble serves its requests."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepen_core.config.base import Options

MemberErrorPolicy = Literal["raise", "drop"]


class ServingConfig(Options):
    """How an ensemble serves its requests."""

    max_batch_size: int = Field(default=32, ge=1, strict=True)
    """Maximum number of requests decoded together; the others wait, first come, first served."""
    max_context_window: int | None = Field(default=None, ge=2, strict=True)
    """Caps the context window of every member, to save memory or time; by default each has its own."""
    gate: float | None = Field(default=None, ge=0, le=1)
    """The other members are asked only where main gives its most probable token less than this probability."""
    on_member_error: MemberErrorPolicy = "raise"
    """The policy of requests without one, see `SamplingParams.on_member_error`."""
