"""Adapters of a model: changes of its weights, such as LoRA, that `peft` merges into them when it is loaded.

One that merely lies beside a model is rejected: `transformers` applies it only where `peft` is installed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from deepen_core.errors import ConfigurationError, ModelFilesError, brief
from deepen_core.members.transformers.formats import has_weights
from deepen_core.members.transformers.json_file import read_object

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_SHOWN = 3


@dataclass(frozen=True)
class Adapter:
    """An adapter that can be merged into a model."""

    place: str
    """What errors call it: the folder, or the hub id."""
    folder: Path
    """The folder with its files."""
    base: str
    """What it says that it was trained on."""

    @classmethod
    def checked(cls, place: str, folder: Path, names: Collection[str]) -> Adapter:
        """Checks the files of an adapter, and that it can be merged here.

        Args:
            place: The folder or hub id.
            folder: The folder with its files.
            names: As `formats.top_names` returns them.

        Raises:
            ConfigurationError: If `peft` is not installed.
            ModelFilesError: If there is no adapter that can be merged, or its weights are a pickle file.
        """
        if not folder.is_dir():
            raise ModelFilesError(f"There is no folder {folder.absolute()}: give that of an adapter, or a hub id.")
        if not (folder / CONFIG).is_file():
            raise ModelFilesError(
                f"{place} is not an adapter: it has no {CONFIG}. Save it there with peft_model.save_pretrained(folder)."
            )
        settings = read_object(folder / CONFIG)
        if _learned_prompt(settings):
            raise ModelFilesError(
                f"{place} is a learned prompt, which cannot be merged into weights: give an adapter of the weights, "
                "such as LoRA, or the model without one."
            )
        if WEIGHTS not in names:
            pickled = (
                "adapter_model.bin, a pickle file, which can run code when it is loaded"
                if ("adapter_model.bin" in names)
                else f"no {WEIGHTS}"
            )
            raise ModelFilesError(
                f"{place} has {pickled}: save it again with peft_model.save_pretrained(folder), which writes {WEIGHTS}."
            )
        if find_spec("peft") is None:
            raise ConfigurationError(
                f"The adapter {place} needs peft, which is not installed: pip install 'deepen-integrations[peft]'."
            )
        return cls(place, folder, str(settings.get("base_model_name_or_path") or "a model that it does not name"))

    def merged_into(self, model: Any, place: str) -> Any:
        """Returns a model with the adapter merged into its weights, of the same class; the given one is used up.

        Args:
            model: The model, on the CPU, with weights that are not quantised.
            place: What errors call it.

        Raises:
            ModelFilesError: If the adapter does not fit the model, is damaged, or `peft` cannot merge its kind.
        """
        from peft import PeftModel, get_peft_model_state_dict  # noqa: PLC0415 (an extra)

        try:
            with safe_open(self.folder / WEIGHTS, framework="pt") as tensors:
                saved = set(tensors.keys())
                _resize(model, {name: tensors.get_slice(name).get_shape()[0] for name in saved})
            wrapped = PeftModel.from_pretrained(model, str(self.folder))
            wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError) as problem:
            raise self._unfit(place, brief(problem)) from problem
        strange = sorted(saved - wanted - set(wrapped.state_dict()))
        for names, fault in ((sorted(wanted - saved), "are missing"), (strange, "have no place in the model")):
            if names:
                listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
                raise self._unfit(place, f"{len(names)} of its tensors {fault}: {listed}")
        try:
            return wrapped.merge_and_unload(safe_merge=True)
        except (AttributeError, RuntimeError, ValueError) as problem:  # a kind without a merge raises any of them
            raise ModelFilesError(
                f"The adapter {self.place} cannot be merged into {place} ({brief(problem)}): give one that peft can "
                "merge, such as LoRA."
            ) from problem

    def _unfit(self, place: str, why: str) -> ModelFilesError:
        return ModelFilesError(
            f"The adapter {self.place} does not fit {place} ({why}). It was trained on {self.base}: give that model, "
            "or fetch the adapter again."
        )


def _resize(model: Any, lengths: Mapping[str, int]) -> None:
    """Gives a model as many embeddings as an adapter holds, which was trained with more tokens, if it holds any."""
    embeddings = model.get_input_embeddings()
    name = next(path for path, module in model.named_modules() if module is embeddings)
    length = lengths.get(f"base_model.model.{name}.weight", len(embeddings.weight))
    if length != len(embeddings.weight):
        model.resize_token_embeddings(length, mean_resizing=False)  # none of them stays as it is made here


def check_adapter(place: str, folder: Path, names: Collection[str]) -> None:
    """Rejects an adapter in place of a model or beside its weights, so that no answer depends on what is installed.

    Args:
        place: The folder or hub id.
        folder: The folder with its small files.
        names: As `formats.top_names` returns them.

    Raises:
        ModelFilesError: If there is an adapter, saying how to give it.
    """
    if (folder / CONFIG).is_file():
        adapter = read_object(folder / CONFIG)
        raise ModelFilesError(_beside(place, adapter) if has_weights(names) else _alone(place, adapter))


def _beside(place: str, adapter: Mapping[str, Any]) -> str:
    told = (
        f"{place} has an adapter ({CONFIG}) beside its weights, which transformers applies only where peft is "
        f"installed. Separate the two: move {CONFIG} and {WEIGHTS} to a folder of their own. What "
        "remains is the model without the adapter."
    )
    if _learned_prompt(adapter):
        return told
    return f"{told} For the model with it, give MemberConfig(model={place!r}, adapter='that folder')."


def _alone(place: str, adapter: Mapping[str, Any]) -> str:
    base = str(adapter.get("base_model_name_or_path") or "its base model")
    told = f"{place} is an adapter of {base!r} ({CONFIG}), not a whole model."
    if _learned_prompt(adapter):
        return f"{told} It is a learned prompt, which cannot be merged into weights: give a model without one."
    return f"{told} Give both: MemberConfig(model={base!r}, adapter={place!r})."


def _learned_prompt(adapter: Mapping[str, Any]) -> bool:
    """Whether an adapter is tokens before the prompt (prompt tuning, prefix tuning), and no change of the weights."""
    return "num_virtual_tokens" in adapter
