"""Options of the ensemble and of one request: pydantic models that need no torch and forbid extra fields."""

from deepen_core.config.fusion import (
    PRESETS,
    AutoConfig,
    BytesConfig,
    FusionConfig,
    ProductConfig,
    SearchName,
    StrategyOptions,
    TranslateConfig,
    UnionConfig,
    resolve_fusion,
)
from deepen_core.config.members import MemberConfig, member_config
from deepen_core.config.ray import RayConfig
from deepen_core.config.sampling import SamplingParams, resolve_sampling
from deepen_core.config.servers import ServerConfig
from deepen_core.config.serving import MemberErrorPolicy, ServingConfig

__all__ = [
    "PRESETS",
    "AutoConfig",
    "BytesConfig",
    "FusionConfig",
    "MemberConfig",
    "MemberErrorPolicy",
    "ProductConfig",
    "RayConfig",
    "SamplingParams",
    "SearchName",
    "ServerConfig",
    "ServingConfig",
    "StrategyOptions",
    "TranslateConfig",
    "UnionConfig",
    "member_config",
    "resolve_fusion",
    "resolve_sampling",
]
