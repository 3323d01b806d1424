"""Which models are members, and how they are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue, SecretStr, field_validator, model_validator
from typing_extensions import Self

from deepen_core.config.base import Options
from deepen_core.config.prompts import FormOption, check_form
from deepen_core.config.ray import RayConfig
from deepen_core.config.servers import ServerConfig, server_config
from deepen_core.errors import ConfigurationError

KINDS = {
    "transformers": "deepen_core.members.transformers.loader:describe",
    "gguf": "deepen_core.members.llama_cpp.loader:describe",
    "server": "deepen_core.members.server.loader:describe",
}
"""`module:function` that describes a member of each kind without its weights."""
RAY = "deepen_core.members.ray.description:describe"
"""The same for a member of any kind with `MemberConfig.ray`."""

_FIELD = "has a field of its own: {}"
_FIXED_KWARGS = {
    "dtype": _FIELD.format("dtype"),
    "torch_dtype": _FIELD.format("dtype"),
    "token": _FIELD.format("token"),
    "tp_plan": "needs one process for each part, and an ensemble runs in one: see device_map",
    "variant": "cannot be chosen: weights are read from model.safetensors, so save the variant under that name",
    "revision": _FIELD.format("revision"),
    "torch_compile": "cannot be chosen: lengths and batches change at every step, and each would be compiled anew",
    "trust_remote_code": _FIELD.format("trust_remote_code"),
    "use_safetensors": "is always True",
    "output_loading_info": "is always True",
    "ignore_mismatched_sizes": "cannot be chosen: such weights are refused",
    "config": "is the model's own",
    "state_dict": "is the model's own",
}
"""Arguments of `from_pretrained` that `model_kwargs` cannot set, and why."""
_OF_WEIGHTS = ("device", "dtype", "adapter", "source_language", "target_language", "model_kwargs")


class MemberConfig(Options):
    """One member of the ensemble and how it is loaded."""

    model: str = Field(min_length=1)
    """Path of a folder in transformers format (`~` is your home), a hub id, or path of a GGUF file."""
    kind: Literal["transformers", "gguf", "server"] | None = None
    """The format of the model, which decides what runs it; by default "server" where `server` is given, "gguf" for a
    name that ends in .gguf, which llama.cpp runs (extra `gguf`), else "transformers"."""
    name: str | None = Field(default=None, min_length=1)
    """The member's name in reports; the last part of `model` by default."""
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Its share in the fusion, from which weights that change start; those of all members are scaled to sum to one."""
    device: str | None = None
    """A torch device: "cpu", "cuda", "cuda:1" or "mps"; the ensemble's by default."""
    dtype: str | None = None
    """Name of a torch dtype: "float32", "bfloat16", "float16", "float64", or "auto"; the ensemble's by default."""
    context_window: int | None = Field(default=None, ge=2)
    """Maximum number of tokens of prompt and answer together, of each for an encoder-decoder model; by default what the
    model's configuration declares."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    token: SecretStr | None = None
    """Access token for a hub id that is not public; by default that of `hf auth login` or HF_TOKEN."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Leave it off unless you trust the author."""
    adapter: str | None = Field(default=None, min_length=1)
    """Folder or hub id of an adapter, such as LoRA, that is merged into the weights (extra `peft`). If there is a
    tokenizer in it, that is used."""
    tokenizer: str | None = Field(default=None, min_length=1)
    """Folder or hub id of a tokenizer to use instead of the model's own, for instance if that is incomplete."""
    chat_template: str | None = Field(default=None, min_length=1)
    """A chat template in place of the tokenizer's own: Jinja, or the path of a file that holds it."""
    prompt: FormOption | None = None
    """What this member is shown in place of a prompt: a template such as "Question: {prompt}\\nAnswer:", in which
    `{prompt}` is the text or the last message of a conversation; "chat", a text as a message by the chat template; or a
    function from prompts to prompts. By default prompts are shown as they are."""
    system: str | None = None
    """An instruction that only this member reads, before conversations."""
    source_language: str | None = Field(default=None, min_length=1)
    """The language of prompts, for an encoder-decoder model that marks it with a token: "eng_Latn" (NLLB)."""
    target_language: str | None = Field(default=None, min_length=1)
    """The language to answer in, for an encoder-decoder model that is told by a first token: "fra_Latn" (NLLB)."""
    server: ServerConfig | None = None
    """The address of a llama.cpp or vLLM server that computes the member's distributions, or its `ServerConfig`. Of
    `model`, only the tokenizer and the configuration are then read."""
    model_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """More arguments for the model's `from_pretrained`, as JSON values: `attn_implementation`, `quantization_config`,
    or `device_map`, which spreads it over several devices in place of `device`. For a GGUF file, `n_ctx`: the number of
    ids, of all requests together, whose keys and values are held."""

    ray: RayConfig | None = None
    """Run it in an actor of a Ray cluster, on any of its machines (extra `ray`), with these resources:
    `{"num_gpus": 1}`. `device` is one of that machine."""

    @property
    def loaded_as(self) -> str:
        """The format of the model: `kind`, or what the other options say."""
        if self.server is not None and self.kind is None:
            return "server"
        return self.kind or ("gguf" if self.model.lower().endswith(".gguf") else "transformers")

    def __hash__(self) -> int:
        """Equal members have equal hashes; `model_kwargs` counts by its names, since a dict has no hash."""
        others = (value for name, value in self if name != "model_kwargs")
        return hash((*others, frozenset(self.model_kwargs)))

    @field_validator("server", mode="before")
    @classmethod
    def _server(cls, given: object) -> object:
        return server_config(given)

    @model_validator(mode="after")
    def _served(self) -> Self:
        if (self.loaded_as == "server") != (self.server is not None):
            raise ValueError(f"kind is {self.kind!r}, and server is {'not ' * (self.server is None)}given")
        taken = [name for name in _OF_WEIGHTS if self.server is not None and getattr(self, name)]
        if taken:
            raise ValueError(f"{' and '.join(taken)} cannot be set with server, which has the weights")
        return self

    @field_validator("prompt", mode="before")
    @classmethod
    def _form(cls, given: object) -> object:
        return check_form(given)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.device is not None and "device_map" in self.model_kwargs:
            raise ValueError(f"device is {self.device!r}, and model_kwargs has a device_map: give one of the two")
        return self

    @field_validator("model_kwargs")
    @classmethod
    def _without_fixed(cls, given: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(_FIXED_KWARGS.keys() & given.keys()):
            raise ValueError("; ".join(f"{name} {_FIXED_KWARGS[name]}" for name in taken))
        return given


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
    raise ConfigurationError(f"{entry!r} is not a member: give a model folder, a hub id or a MemberConfig.")
