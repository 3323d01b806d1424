"""The harness's model arguments, as `--model_args` has them, as options of `Ensemble.load`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepen_core.config.weights import POLICIES
from deepen_core.errors import ConfigurationError
from deepen_integrations.load_options import DEMO, LoadOptions

_SEPARATOR = ";"


def load_options(given: Mapping[str, Any]) -> LoadOptions:
    """Returns what to load.

    Args:
        given: Options of `LoadOptions`. Lists may be joined by ";", since the harness takes a comma for the end of an
            argument. Without `models` it is the embedded demo. `batch_size` is `max_batch_size`; 1, which is the
            harness's default, and "auto" leave it to the engine.

    Raises:
        ConfigurationError: For an unknown option, or a value outside its range.
    """
    options = {"models": DEMO, **{name: value for name, value in given.items() if value is not None}}
    options |= _batch(options.pop("batch_size", 1), options.get("max_batch_size"))
    if isinstance(options["models"], str) and options["models"] != DEMO:
        options["models"] = [part.strip() for part in options["models"].split(_SEPARATOR)]
    weights = options.get("weights")
    if isinstance(weights, str) and weights.partition(":")[0] in POLICIES:
        options["weights"] = weights.replace(_SEPARATOR, ",")
    elif isinstance(weights, str):
        options["weights"] = _numbers(weights)
    elif isinstance(weights, (int, float)):
        options["weights"] = [float(weights)]
    return LoadOptions(**options)


def _batch(size: Any, most: Any) -> dict[str, int]:
    if most is not None:
        return {"max_batch_size": int(most)}
    text = str(size)
    if text.startswith("auto") or text == "1":
        return {}
    if not text.isdecimal():
        raise ConfigurationError(f'batch_size is {size!r}: give a number, or "auto".')
    return {"max_batch_size": int(text)}


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(_SEPARATOR)]
    except ValueError:
        raise ConfigurationError(
            f"weights is {text!r}: give numbers such as 0.7{_SEPARATOR}0.3, or one of {', '.join(POLICIES)}."
        ) from None
