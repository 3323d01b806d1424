"""What a model needs of this machine, found before its weights are read: packages, a GPU, leave to run its own code.

`transformers` is asked, which knows what it needs, and its answer is quoted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from deepen_core.errors import ConfigurationError, ModelFilesError, brief
from deepen_core.members.transformers.blueprint import Blueprint
from deepen_core.members.transformers.random_state import own_randomness

_UNQUANTISED = "give the model in its original weights"
_ATTENTION = ("attn_implementation", "_attn_implementation")


def own_code(place: str) -> ConfigurationError:
    """Returns the error for a model that comes with code of its own, which may not be run."""
    return ConfigurationError(
        f"{place} cannot be loaded without the Python code that comes with it, which is not run unless you say so: "
        "read it, and if you trust its author, give MemberConfig(model=..., trust_remote_code=True)."
    )


def missing_package(place: str, problem: ImportError, way_out: str = "Install what it names") -> ConfigurationError:
    """Returns the error for a model that `transformers` cannot build for want of a package."""
    return ConfigurationError(f"{place} cannot be built here ({brief(problem)}). {way_out}.")


def check_quantisation(place: str, given: Mapping[str, Any], model_config: Any, *, trusted: bool) -> None:
    """Rejects quantised weights that cannot be loaded on this machine.

    Args:
        place: The folder or hub id.
        given: The content of config.json.
        model_config: What `transformers` made of it.
        trusted: Whether the model's own code is run, which may read weights that `transformers` cannot.

    Raises:
        ConfigurationError: Naming the method, and what it needs here.
        ModelFilesError: If `transformers` does not know the method.
    """
    for_mlx = given.get("quantization")
    if isinstance(for_mlx, Mapping) and {"bits", "group_size"} <= for_mlx.keys():
        raise ModelFilesError(
            f"{place} is quantised for MLX ({for_mlx['bits']} bits in groups of {for_mlx['group_size']}), which "
            f"transformers cannot read: {_UNQUANTISED}, or convert it with `mlx_lm.convert --dequantize --hf-path "
            f'{place}`. If its weights are not quantised, remove "quantization" from its config.json.'
        )
    settings = _quantisation(model_config)
    if settings is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer  # noqa: PLC0415 (a hundred MiB of modules)

    method = settings.get("quant_method", "a method that it does not name")
    try:
        known = AutoHfQuantizer.supports_quant_method(settings)
        if known:
            quantiser = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=True)
            quantiser.validate_environment(device_map=None, weights_only=True)
    except Exception as problem:  # each method has its own errors for packages and devices
        raise ConfigurationError(
            f"{place} is quantised with {method}, and transformers cannot load that here ({brief(problem)}). Provide "
            f"what it asks for (it names one thing at a time), or {_UNQUANTISED}."
        ) from problem
    if not (known or trusted):
        raise ModelFilesError(
            f"{place} is quantised with {method}, which transformers {transformers.__version__} does not know: "
            f'{_UNQUANTISED}. If its weights are not quantised, remove "quantization_config" from its config.json.'
        )


def check_unquantised(place: str, model_config: Any, model_kwargs: Mapping[str, Any]) -> None:
    """Rejects an adapter for quantised weights: the sum would be rounded again, to something else than was trained.

    Raises:
        ConfigurationError: If the weights are quantised, or to be.
    """
    if _quantisation(model_config) or model_kwargs.get("quantization_config"):
        raise ConfigurationError(
            f"The weights of {place} are quantised, and an adapter cannot be merged into such weights without another "
            f"rounding: {_UNQUANTISED}, or without the adapter."
        )


def check_packages(
    place: str, given: Mapping[str, Any], model_config: Any, auto_class: Any, *, trusted: bool
) -> Blueprint | None:
    """Builds a model without memory for its weights, and rejects it if a package is missing for that.

    Other errors are left to loading, which reports them with more detail.

    Args:
        place: The folder or hub id.
        given: The content of config.json.
        model_config: What `transformers` made of it.
        auto_class: The class of `transformers` that builds it.
        trusted: Whether the model's own code is run.

    Returns:
        What the model consists of; None if it cannot be built so.

    Raises:
        ConfigurationError: Naming what is missing, in the words of `transformers`.
    """
    try:
        with own_randomness(), torch.device("meta"):
            model = auto_class.from_config(copy.deepcopy(model_config), trust_remote_code=trusted)
            return Blueprint.from_model(model)
    except ImportError as problem:
        asked = next((f'"{name}": "{given[name]}"' for name in _ATTENTION if given.get(name)), None)
        if asked is None:
            raise missing_package(place, problem) from problem
        package = "flash-attn, which needs a GPU" if "flash_attention_2" in asked else "what it names"
        way_out = f"Remove {asked} from its config.json, or install {package}"
        raise missing_package(place, problem, way_out) from problem
    except Exception:  # noqa: BLE001 (loading reports it)
        return None


def _quantisation(model_config: Any) -> Any:
    """Returns the settings of quantisation where `transformers` looks for them, or None."""
    configs = (model_config, model_config.get_text_config(decoder=True))
    return next((found for c in configs if (found := getattr(c, "quantization_config", None))), None)
