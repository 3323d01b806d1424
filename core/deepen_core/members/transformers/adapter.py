"""Rejects adapters: `transformers` applies one to the model beside it only where peft is installed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers.checkpoint import read_object
from deepen_core.members.transformers.formats import has_weights

_CONFIG = "adapter_config.json"


def check_adapter(place: str, folder: Path, names: Collection[str]) -> None:
    """Rejects an adapter, alone or beside the weights of a model, so that no answer depends on what is installed.

    Args:
        place: The folder or hub id.
        folder: The folder with its small files.
        names: As `formats.top_names` returns them.

    Raises:
        ModelFilesError: If there is an adapter, saying how to merge it into its base model.
    """
    if (folder / _CONFIG).is_file():
        adapter = read_object(folder / _CONFIG)
        raise ModelFilesError(_beside(place, adapter) if has_weights(names) else _alone(place, adapter, names))


def _beside(place: str, adapter: Mapping[str, Any]) -> str:
    told = (
        f"{place} has an adapter ({_CONFIG}) beside its weights, which transformers applies only where peft is "
        f"installed. Separate the two: move {_CONFIG} and adapter_model.safetensors to a folder of their own. What "
        "remains is the model without the adapter."
    )
    if _learned_prompt(adapter):
        return told
    return f"{told} For the model with it, merge them once: {_merging(place, 'that folder')}."


def _alone(place: str, adapter: Mapping[str, Any], names: Collection[str]) -> str:
    base = str(adapter.get("base_model_name_or_path") or "its base model")
    told = f"{place} is an adapter of {base!r} ({_CONFIG}), not a whole model."
    if _learned_prompt(adapter):
        return f"{told} It is a learned prompt, which cannot be merged into weights: give a model without one."
    tokenizer = place if "tokenizer_config.json" in names else base
    return (
        f"{told} Merge the two once with peft, and give the result: {_merging(base, place)} and "
        f"AutoTokenizer.from_pretrained({tokenizer!r}).save_pretrained('merged')."
    )


def _learned_prompt(adapter: Mapping[str, Any]) -> bool:
    """Whether an adapter is tokens before the prompt (prompt tuning, prefix tuning), and no change of the weights."""
    return "num_virtual_tokens" in adapter


def _merging(base: str, adapter: str) -> str:
    """Returns the line of Python that saves a model with its adapter merged into the weights."""
    return (
        f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {adapter!r}).merge_and_unload()"
        ".save_pretrained('merged')"
    )
