"""The options of `Ensemble.load` as plain, comparable data: they identify the ensemble of an adapter."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from deepen_core.config import PRESETS, MemberConfig, StrategyOptions, member_config, resolve_fusion
from deepen_core.config.base import explain
from deepen_core.config.prompts import FormOption, forms_by_member
from deepen_core.demo import MEMBERS as DEMO_MEMBERS
from deepen_core.errors import ConfigurationError
from deepen_core.fusion.weights import normalised_weights, policy_and_shares

DEMO = "demo"
"""`models="demo"` names the embedded demo ensemble."""
LOADED = "loaded:"
"""`models="loaded:..."` names an ensemble of this process that was given to `from_ensemble`."""


_NO_FUNCTIONS = (
    "a function cannot be saved with an adapter: give a template, or load the ensemble with Ensemble.load and pass it "
    "to from_ensemble"
)


class LoadOptions(BaseModel):
    """Which models are loaded, and how. Equal options share one ensemble.

    Raises:
        ConfigurationError: For an unknown option, naming the nearest known one, or a value outside its range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    models: tuple[MemberConfig, ...] | str = Field(default=(), validate_default=True)
    """The members: model folders, hub ids or `MemberConfig`s; or "demo" for the embedded demo."""
    main: int | str = 0
    """The main model, whose tokens are generated: index or name of a member."""
    weights: tuple[float, ...] | str | None = None
    """One number per member, its share in the fusion, or a policy that starts from each member's own weight, or from
    shares after its name ("perplexity:0.9,0.1"): "adaptive", "confidence", "consistency", "perplexity", "context" or
    "static". By default "context" if the strategy compares tokens ("deepen", "product", "bytes" and "auto"), or
    "adaptive" where a server of llama.cpp runs a member; with the other strategies "static"."""
    fusion: SerializeAsAny[StrategyOptions] | str = "deepen"
    """How distributions are fused: a name in `deepen_core.config.PRESETS`, or the options of a strategy."""
    gate: float | None = Field(default=None, ge=0, le=1)
    """The other members are asked only where main gives its most probable token less than this probability; by default
    everywhere."""
    prompts: tuple[FormOption | None, ...] | None = Field(default=None, validate_default=True)
    """What each member is shown in place of a prompt: a template such as "Question: {prompt}\\nAnswer:", or "chat" for
    a text as a message by the member's chat template; one for each member, None for those without. By default each
    member's own. Or a mapping by the members' names."""
    device: str | None = None
    """Torch device of members without one of their own, such as "cpu" or "cuda:0"; by default the engine chooses."""
    dtype: str = "auto"
    """Torch dtype of members without one of their own, such as "bfloat16"."""
    max_batch_size: int = Field(default=32, ge=1, strict=True)
    """Maximum number of requests decoded together; the others wait, first come first served."""

    max_context_window: int | None = Field(default=None, ge=2, strict=True)
    """Caps the context window of every member, in its own tokens; by default each has its own."""
    max_waiting: int = Field(default=10_000, ge=1, strict=True)
    """Maximum number of requests that wait; a call beyond them raises `QueueFullError`."""
    step_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds that a member may take for a step before it counts as failed; by default there is no limit."""

    @field_validator("models", mode="before")
    @classmethod
    def _member_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value == DEMO or value.startswith(LOADED):
                return value
            raise ValueError(f"give a list of members such as [{value!r}, 'another'], or {DEMO!r}")
        if not isinstance(value, (list, tuple)):
            raise ValueError("give a list of model folders, hub ids or MemberConfigs")
        if not value:
            raise ValueError("an ensemble needs at least one member")
        return tuple(map(member_config, value))

    @field_validator("weights", mode="before")
    @classmethod
    def _one_weight_each(cls, value: Any, info: ValidationInfo) -> Any:
        members = info.data.get("models")
        _, shares = policy_and_shares(value)
        given = shares if isinstance(value, str) else value
        if given is not None and members is not None and (names := _names(members)):
            normalised_weights(given, names)
        return value

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_form_each(cls, value: Any, info: ValidationInfo) -> Any:
        members = info.data.get("models")
        if members is not None and any(callable(m.prompt) for m in members if isinstance(m, MemberConfig)):
            raise ValueError(_NO_FUNCTIONS)
        if value is None or members is None or not (names := _names(members)):
            return value
        forms = tuple(forms_by_member(value, names))
        if any(map(callable, forms)):
            raise ValueError(_NO_FUNCTIONS)
        return forms

    @field_validator("fusion", mode="before")
    @classmethod
    def _known_fusion(cls, value: Any) -> StrategyOptions | str:
        """Maps every way to give one fusion to one value."""
        config = resolve_fusion(value)
        return next((name for name, preset in PRESETS.items() if preset == config), config)

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raises the engine's own error, because frameworks swallow the ValueError that pydantic raises."""
        try:
            return handler(values)
        except ValidationError as problem:
            raise ConfigurationError(explain(problem, cls)) from problem

    @property
    def label(self) -> str:
        """The members' names joined by `+`."""
        return "+".join(self.names) or str(self.models)

    @property
    def names(self) -> list[str]:
        """The members' names; empty for an adopted ensemble."""
        return _names(self.models)


def _names(members: tuple[MemberConfig, ...] | str) -> list[str]:
    """The members' names; empty for an adopted ensemble, which has checked its weights itself."""
    if isinstance(members, str):
        return list(DEMO_MEMBERS) if members == DEMO else []
    return [member.name or PurePath(member.model).name for member in members]
