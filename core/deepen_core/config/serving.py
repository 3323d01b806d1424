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
    max_waiting: int | None = Field(default=10_000, ge=1, strict=True)
    """Maximum number of requests that wait: a call beyond them raises `QueueFullError`. What one call asks for, such as
    a list of prompts, is taken on as a whole. None for no limit."""
    step_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds that a member may take for a step before it counts as failed (`MemberTimeoutError`) and `on_member_error`
    says what becomes of the requests; its first steps may take longer, since they may compile. It takes part again
    once its step has ended. None for no limit."""
    max_context_window: int | None = Field(default=None, ge=2, strict=True)
    """Caps the context window of every member, to save memory or time; by default each has its own."""
    gate: float | None = Field(default=None, ge=0, le=1)
    """The other members are asked only where main gives its most probable token less than this probability."""
    on_member_error: MemberErrorPolicy = "raise"
    """The policy of requests without one, see `SamplingParams.on_member_error`."""
