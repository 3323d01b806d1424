"""Where a member runs that is an actor of a Ray cluster."""

from __future__ import annotations

from pydantic import Field, JsonValue

from deepen_core.config.base import Options

LOCAL = "local"
"""The address of a cluster on this machine, which is started if there is none."""


class RayConfig(Options):
    """The resources of a member that is a Ray actor, what it replies, and how long it is waited for."""

    num_cpus: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """CPU cores, and its number of threads (at least one)."""
    num_gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """GPUs; a share of one if less than 1. `MemberConfig.device` is then "cuda" unless it is given."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Resources of your own that nodes of the cluster have, such as `{"big-memory": 1}`."""
    address: str = Field(default=LOCAL, min_length=1)
    """The cluster: "local" for the one that this process is connected to, or else one on this machine that is started
    for it; "auto" for one that runs on this machine; or "ray://host:10001"."""
    runtime_env: dict[str, JsonValue] = Field(default_factory=dict)
    """Ray's `runtime_env` of the actor, such as `{"pip": ["deepen-integrations"]}` for machines without the package."""
    top_k: int | None = Field(default=512, ge=1)
    """Number of most probable tokens whose log-probabilities it sends; the others share evenly what these leave. None
    for all."""
    max_restarts: int = Field(default=3, ge=-1)
    """How often within ten minutes it is started again after it died; -1 for no limit."""
    step_timeout: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds that a step may take before it counts as failed."""
    start_timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds to wait for a machine with the resources, and for its process to start."""
    load_timeout: float = Field(default=1800.0, gt=0, allow_inf_nan=False)
    """Seconds that loading the weights may take, and again trying the model."""

    def __hash__(self) -> int:
        """Equal options have equal hashes; mappings count by their names."""
        plain = (value for _, value in self if not isinstance(value, dict))
        return hash((*plain, frozenset(self.resources), frozenset(self.runtime_env)))
