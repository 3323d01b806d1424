"""The tensors that a configuration describes, compared with those in the files before any memory is taken for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers.weight_files import Shapes

_LARGER = 4  # times the tensors in the files; quantised ones pack up to sixteen numbers into one
_LARGER_QUANTISED = 64
_FREE = 2**24
"""Numbers that a model may have beyond its files, such as masks and positions that are computed."""


@dataclass(frozen=True)
class Blueprint:
    """What a model consists of, found by building it without memory.

    Attributes:
        shapes: Those of the tensors that are saved.
        numbers: In all its tensors, those that are computed included.
        quantised: Whether the files hold other tensors than the model.
    """

    shapes: Shapes
    numbers: int
    quantised: bool

    @classmethod
    def from_model(cls, model: Any) -> Blueprint:
        """Returns the blueprint of a model on torch's device "meta"."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        tensors = [*model.parameters(), *model.buffers()]  # shared ones once
        quantised = getattr(model.config, "quantization_config", None) is not None
        return cls(shapes, sum(tensor.numel() for tensor in tensors), quantised)

    def check(self, folder: Path, saved: Shapes) -> None:
        """Compares it with what is in the files.

        Args:
            folder: The model folder, for error messages.
            saved: The shapes of the tensors in its files.

        Raises:
            ModelFilesError: If a tensor has another shape, or the model is far larger than its files.
        """
        other = [
            other_shape(name, saved[name], shape)
            for name, shape in self.shapes.items()
            # What only turns numbers around may be turned back while it is read.
            if not self.quantised and name in saved and math.prod(saved[name]) != math.prod(shape)
        ]
        if other:
            raise does_not_fit(folder, len(self.shapes), [("have another shape", other)])
        there = sum(math.prod(shape) for shape in saved.values())
        if self.numbers > (_LARGER_QUANTISED if self.quantised else _LARGER) * there + _FREE:
            raise ModelFilesError(
                f"{folder / 'config.json'} describes a model of {self.numbers:,} numbers, and the weight files have "
                f"{there:,}: correct the configuration, or fetch or save the model again."
            )


def other_shape(name: str, saved: Sequence[int], wanted: Sequence[int]) -> str:
    """Returns what an error says of a tensor of another shape."""
    return f"{name} {list(saved)} where {list(wanted)} is needed"


def does_not_fit(folder: Path, tensors: int, faults: Sequence[tuple[str, Sequence[str]]]) -> ModelFilesError:
    """Returns the error for weights that would leave tensors of a model random.

    Args:
        folder: The model folder.
        tensors: How many the model has.
        faults: What is wrong, and with which of them.
    """
    told = [f"{len(names)} of its {tensors} tensors {fault} ({_first(names)})" for fault, names in faults if names]
    return ModelFilesError(
        f"The weights of {folder} do not fit its config.json: {' and '.join(told)}. They would be random: correct "
        "the configuration, or fetch or save the model again."
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
