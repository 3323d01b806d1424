"""Options of the ensemble and of one request: pydantic models without torch, extra fields refused."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from deepen_core.config.base import Options
from deepen_core.config.constraints import CONSTRAINTS, ConstraintOptions
from deepen_core.errors import ConfigurationError, SamplingError

SearchName = Literal["em", "adamw"]
MemberErrorPolicy = Literal["raise", "drop"]
_LEAST_TEMPERATURE = 1e-4


class MemberConfig(Options):
    """One member of the ensemble and how it is loaded."""

    model: str = Field(min_length=1)
    """Path of a folder in transformers format (`~` is your home), or a hub id."""
    name: str | None = Field(default=None, min_length=1)
    """How the member is called in reports; the last part of `model` if not given."""
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Its share in the average; the weights of all members are normalised to sum to one."""
    device: str | None = None
    """A torch device: "cpu", "cuda", "cuda:1" or "mps"; the ensemble's if not given."""
    dtype: str | None = None
    """Name of a torch dtype, "float32", "bfloat16", "float16" or "float64", or "auto"; the ensemble's if not given."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off unless you trust its author."""


def member_config(entry: object) -> MemberConfig:
    """Makes a member of a path, a hub id, a `MemberConfig` or its fields.

    Raises:
        ConfigurationError: If it is none of these, or a field is wrong.
    """
    if isinstance(entry, MemberConfig):
        return entry
    if isinstance(entry, (str, os.PathLike)):
        entry = {"model": os.fspath(entry)}
    if isinstance(entry, Mapping):
        config: MemberConfig = MemberConfig.parse(entry, ConfigurationError)
        return config
    raise ConfigurationError(f"{entry!r} is no member: give a model folder, a hub id or a MemberConfig.")


class FusionConfig(Options):
    """How distributions are averaged and brought back."""

    search: SearchName = "em"
    """Inverse from the relative space: "em", or the paper's "adamw"."""
    temperature: float | Literal["auto"] = "auto"
    """Sharpness of the relative rows; "auto" calibrates it per member to `target_self_mass`."""
    target_self_mass: float = Field(default=0.9, gt=0.0, lt=1.0)
    """With `temperature="auto"`: the median share of an anchor's row that stays on the anchor."""
    unshared: Literal["prefix", "embedding"] = "prefix"
    """Where a token goes that is no anchor: to the longest anchor that it begins with, or, as in the paper, to the
    anchors that its embedding is near to."""
    healing: bool = True
    """Let a member say what it may still have meant where main speaks in shorter tokens than its own."""
    steps: int = Field(default=5, ge=1, le=1000)
    """Iterations of the search."""
    trust_radius: float = Field(default=0.15, gt=0.0, allow_inf_nan=False)
    """The paper's learning rate, for "adamw": a logit moves at most about 4.5 times this in 5 steps."""
    candidates: int = Field(default=512, ge=8)
    """At most so many of a member's tokens have a row of their own in a step; all others go with their column."""
    images: int = Field(default=64, ge=0)
    """So many of another member's most probable tokens make main's tokens for them candidates as well."""
    row_entries: int = Field(default=16, ge=1)
    """Entries kept of a relative row; the mass below them is spread as the mean row spreads it."""
    row_floor: float | None = Field(default=None, ge=0.0, le=1.0)
    """Tokens less probable than this are no candidates of their own account. If not given, 1e-3, or 1e-4 where other
    tokens could not follow the average: with "adamw", or with tokens that go by their embedding."""
    exact: bool = False
    """Use whole matrices (vocabulary x anchors, held in memory) instead of candidates and sparse rows."""

    @property
    def floor(self) -> float:
        """`row_floor`, or what it is for this search if not given."""
        if self.row_floor is not None:
            return self.row_floor
        return 1e-3 if (self.search, self.unshared) == ("em", "prefix") else 1e-4

    @field_validator("temperature")
    @classmethod
    def _positive(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0.0 < value < float("inf"):
            raise ValueError('must be a positive number or "auto"')
        return value


PRESETS: dict[str, FusionConfig] = {
    "deepen": FusionConfig(),
    "deepen-paper": FusionConfig(
        search="adamw",
        temperature=100.0,
        unshared="embedding",
        healing=False,
        trust_radius=0.15,
        steps=5,
        row_entries=64,  # its rows are less sharp, and the search scales small differences up
    ),
}


def resolve_fusion(fusion: str | FusionConfig | Mapping[str, Any]) -> FusionConfig:
    """Resolves a preset name, a configuration or its fields.

    Raises:
        ConfigurationError: For an unknown name or field.
    """
    if isinstance(fusion, FusionConfig):
        return fusion
    if isinstance(fusion, str):
        if fusion not in PRESETS:
            raise ConfigurationError(
                f"Unknown fusion {fusion!r}: choose {' or '.join(map(repr, PRESETS))}, or pass a FusionConfig."
            )
        return PRESETS[fusion]
    if not isinstance(fusion, Mapping):
        raise ConfigurationError(f"fusion is a {type(fusion).__name__}: pass a name, a FusionConfig or its fields.")
    config: FusionConfig = FusionConfig.parse(fusion, ConfigurationError)
    return config


class ServingConfig(Options):
    """How an ensemble serves its requests."""

    max_batch_size: int = Field(default=32, ge=1, strict=True)
    """So many requests are decoded together at most; the others wait, first come first served."""
    on_member_error: MemberErrorPolicy = "raise"
    """The policy of requests that name none, see `SamplingParams.on_member_error`."""


class SamplingParams(ConstraintOptions):
    """Options of one request. Unknown fields are refused."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Main-member tokens to generate at most; clamped to the room in the smallest context window."""
    temperature: float = Field(default=0.0, ge=0.0, le=100.0, allow_inf_nan=False)
    """0 takes the most probable token; from 0.0001 to 100 samples, higher is more varied."""
    top_k: int | None = Field(default=None, ge=1)
    """Sample from the k most probable tokens."""
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    """Sample from the smallest set of tokens whose probabilities sum to p."""
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    """Sample from tokens at least so probable, relative to the most probable one."""
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0, allow_inf_nan=False)
    """Above 1 makes main-member tokens less likely that stand in the prompt or the answer; from 0.01 to 100."""
    stop: tuple[str, ...] = ()
    """The answer is cut before the first of these; they match across token boundaries."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """The same seed gives the same text. No global random state is touched."""
    logprobs: int | None = Field(default=None, ge=0, le=100)
    """Report the log-probability of each chosen token and of so many alternatives, as they were before a constraint."""
    timeout: float | None = None
    """Seconds from asking after which the request ends with `finish_reason="timeout"` and what it has."""
    ignore_eos: bool = False
    """Go on to `max_new_tokens` although the ensemble would end the text; where a constraint leaves nothing but the
    end, the text ends."""
    on_member_error: MemberErrorPolicy | None = None
    """What a failing member, other than main, does to this request: "raise" ends it with a `MemberError`, "drop" goes
    on without the member and says so in `Generation.warnings`; the ensemble's policy if not given."""

    @model_validator(mode="before")
    @classmethod
    def _max_tokens(cls, values: Any) -> Any:
        """Accepts `max_tokens`, the frameworks' name of `max_new_tokens`."""
        if isinstance(values, dict) and "max_tokens" in values:
            values = dict(values)
            if "max_new_tokens" in values:
                raise ValueError("give max_new_tokens or max_tokens, not both")
            values["max_new_tokens"] = values.pop("max_tokens")
        return values

    @field_validator("temperature")
    @classmethod
    def _not_tiny(cls, value: float) -> float:
        if 0.0 < value < _LEAST_TEMPERATURE:
            raise ValueError(
                f"use 0 for the most probable token, or at least {_LEAST_TEMPERATURE}: logits divided by less overflow"
            )
        return value

    @field_validator("timeout")
    @classmethod
    def _some_time(cls, value: float | None) -> float | None:
        if value is not None and not value > 0.0:
            raise ValueError("it would end the request before its first token; give more than 0 seconds, or None")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_strings(cls, value: Any) -> Any:
        strings = () if value is None else (value,) if isinstance(value, str) else value
        if isinstance(strings, Mapping) or not isinstance(strings, Iterable):
            raise ValueError("give a string or a list of strings")
        strings = tuple(strings)
        for string in strings:
            if not isinstance(string, str):
                raise ValueError(f"{string!r} is no string; give a string or a list of strings")
            if not string:
                raise ValueError("an empty stop string would end every answer at once; leave it out")
            if any("\ud800" <= c <= "\udfff" for c in string):
                raise ValueError(f"{string!r} holds half a character (a lone surrogate), which no answer can contain")
        return strings


def resolve_sampling(params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
    """Joins ready parameters with keyword options, which win.

    Raises:
        SamplingError: For an unknown option or a value outside its range.
    """
    if params is not None and not isinstance(params, SamplingParams):
        raise SamplingError(f"params is a {type(params).__name__}: pass a SamplingParams, and options by keyword.")
    if params is not None and not options:
        return params
    values = {} if params is None else params.model_dump(exclude_unset=True)
    if "max_tokens" in options:
        values.pop("max_new_tokens", None)
    if any(options.get(name) is not None for name in CONSTRAINTS):
        values |= {name: None for name in CONSTRAINTS if name in values}  # one constraint takes the place of another
    merged: SamplingParams = SamplingParams.parse({**values, **options}, SamplingError)
    return merged
