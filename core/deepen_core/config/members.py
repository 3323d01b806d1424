"""What a member is and how it is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from deepen_core.config.base import Options
from deepen_core.errors import ConfigurationError

KINDS = {"transformers": "deepen_core.members.transformers.loader:describe"}
"""`module:function` that reads what can be known of a member of a kind without its weights."""


class MemberConfig(Options):
    """One member of the ensemble and how it is loaded."""

    model: str = Field(min_length=1)
    """Path of a folder in transformers format (`~` is your home), or a hub id."""
    kind: Literal["transformers"] = "transformers"
    """What runs it: a model in transformers format."""
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
