"""A GGUF file that `transformers` runs, with all weights dequantised: for want of llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from typing_extensions import Self

from deepen_core.config import MemberConfig
from deepen_core.errors import ConfigurationError, ModelFilesError, brief
from deepen_core.members.base import WeightBytes
from deepen_core.members.llama_cpp.header import GgufHeader, read_header
from deepen_core.members.memory import is_memory, more_room
from deepen_core.members.transformers.bars import weight_bars
from deepen_core.members.transformers.loaded import loaded_member
from deepen_core.members.transformers.loader import device_named, dtype_named
from deepen_core.members.transformers.model_member import ModelMember
from deepen_core.members.transformers.random_state import own_randomness
from deepen_core.members.transformers.requirements import missing_package
from deepen_core.members.transformers.text_side import TextDescribed, TextSide


@dataclass(frozen=True)
class Dequantised(TextDescribed):
    """A `DescribedMember`: the file's header and tokenizer are read, its weights are not.

    Attributes:
        config: The member.
        header: The header of its file.
        text: Its tokenizer, and what is derived from it.
        device: The device that it will be loaded on.
        dtype: That its weights will have.
    """

    config: MemberConfig
    header: GgufHeader
    text: TextSide
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(
        cls, config: MemberConfig, header: GgufHeader, text: TextSide, device: str | None, dtype: str | None
    ) -> Self:
        """Chooses its device and dtype as for other members; "auto" is float32.

        Raises:
            ConfigurationError: If there is no such device or dtype.
        """
        kind = dtype_named(dtype)
        wanted = kind if isinstance(kind, torch.dtype) else torch.float32
        return cls(config, header, text, device_named(config.device or device), wanted)

    @property
    def architecture(self) -> str:
        """See `DescribedMember.architecture`."""
        return f"{self.header.architecture} (GGUF, dequantised)"

    def weight_bytes(self) -> WeightBytes:
        """See `DescribedMember.weight_bytes`."""
        count, kind = self.header.parameters, self.dtype
        files = self.header.path.stat().st_size
        return WeightBytes(count, files, count * kind.itemsize, str(kind).removeprefix("torch."))

    def check_files(self) -> None:
        """See `DescribedMember.check_files`; the header tells how long the file must be."""
        read_header(self.header.path)

    def load(self, *, progress: bool) -> ModelMember:
        """See `DescribedMember.load`."""
        path = self.header.path
        # Newer versions keep the blocks of GGUF unless told otherwise.
        config = getattr(transformers, "GgufConfig", None)
        options: dict[str, Any] = {} if config is None else {"quantization_config": config(dequantize=True)}
        try:
            with weight_bars(progress), own_randomness():
                model: Any = AutoModelForCausalLM.from_pretrained(
                    path.parent, gguf_file=path.name, dtype=self.dtype, **options
                )
            model.eval().requires_grad_(False)
            model.to(self.device)
        except Exception as problem:  # a model that it does not know raises anything
            if is_memory(problem):
                raise ConfigurationError(
                    f"{self.name} does not fit on {self.device}: its weights take "
                    f"{self.weight_bytes().memory / 2**20:.0f} MiB. {more_room(self.dtype)} ({brief(problem)})."
                ) from problem
            if isinstance(problem, ImportError):
                raise missing_package(str(path), problem) from problem
            raise ModelFilesError(
                f"transformers cannot load {path} ({brief(problem)}): install llama.cpp to run it with `pip install "
                "xllamacpp`, or give the model's folder in transformers format."
            ) from problem
        return loaded_member(self.name, model, self.text)
