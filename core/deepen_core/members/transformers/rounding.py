"""Decides whether two runs of a model differ by rounding alone, measured against the model itself.

In half precision, the logits of a real model differ between two forwards of different shapes by a hundredth to two
fifths of their size, as much as a wrong mask may change them. At the depth where a mask goes wrong, however, it changes
the output of a layer ten to a hundred times as much as rounding does. So runs are compared layer by layer, each layer
against the deviation between equivalent runs of the model at that depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from deepen_core.members.transformers.excerpt import layer_list


@dataclass(frozen=True)
class _Bounds:
    """Deviations, as shares of the size of what is compared.

    Attributes:
        floor: Always counts as rounding: a few of the smallest steps of the dtype.
        layer: Beyond this, rounding cannot explain the deviation of a layer's output.
        logits: The same for logits, where the rounding of all layers adds up.
    """

    floor: float
    layer: float
    logits: float


_BOUNDS = {
    torch.float64: _Bounds(1e-6, 1e-6, 1e-6),
    torch.float32: _Bounds(1e-3, 1e-3, 1e-3),
    torch.float16: _Bounds(2**-8, 2**-5, 2**-3),
    torch.bfloat16: _Bounds(2**-5, 2**-2, 2**-1),
}
# Over three real models in bfloat16 and float16, correct runs deviate at most 6 times as much as equivalent runs of the
# model do, and runs with a wrong mask at least 45 times (at the worst layer).
_FACTOR = 12.0

States = list[torch.Tensor]
"""The output of each layer [sequences, ids, width], and last the logits [sequences, ids, vocabulary]."""


class Layers:
    """Records the outputs of a model's layers; there are none in a model without a list of layers.

    Args:
        model: The model; it is changed only while `listening` is active.
    """

    def __init__(self, model: Any) -> None:
        place = layer_list(model)
        self._layers: list[torch.nn.Module] = [] if place is None else list(getattr(*place))

    def ignore(self) -> None:
        """Records no layer from now on."""
        self._layers.clear()

    @contextmanager
    def listening(self) -> Iterator[States]:
        """Yields a list to which a forward inside appends the output of each layer."""
        heard: States = []

        def note(_module: Any, _inputs: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            if isinstance(state, torch.Tensor) and state.dim() == 3:
                heard.append(state)

        hooks = [layer.register_forward_hook(note) for layer in self._layers]
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()


class Rounding:
    """The deviation between equivalent runs of a model at each depth.

    Args:
        dtype: Of the model.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._bounds = _BOUNDS[dtype]
        self._own: list[float] = []

    @property
    def learns(self) -> bool:
        """Whether what is learned is used: in float32 and float64, the bounds leave nothing between them."""
        return self._bounds.floor < self._bounds.layer

    def learn(self, found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
        """Learns from two runs that differ by rounding alone."""
        seen = _deviations(found, expected)
        self._own = [max(pair) for pair in zip(self._own, seen, strict=True)] if self._own else seen

    def problem(self, found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str:
        """Returns how two runs differ, as the end of a sentence, or an empty string if it is rounding."""
        seen = _deviations(found, expected)
        own = self._own or [0.0] * len(seen)
        if len(seen) != len(own):
            return f"{len(seen)} layers where there were {len(own)}"
        for depth, (off, usual) in enumerate(zip(seen, own, strict=True)):
            last = depth == len(seen) - 1
            most = self._bounds.logits if last else self._bounds.layer
            if not off <= max(self._bounds.floor, min(_FACTOR * usual, most)):
                place = "its logits" if last else f"the output of layer {depth}"
                own_rounding = f", where its own rounding is {usual:.2g}" if self._own else ""
                return f"{place} by {off:.2g} of their size{own_rounding}"
        return ""


def _deviations(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> list[float]:
    """Returns the root mean square of the difference at each depth, as a share of the spread of the expected values."""
    return [_deviation(*pair) for pair in zip(found, expected, strict=True)]


def _deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.float(), expected.float()
    off = (found - expected).square().mean().sqrt()
    size = (expected - expected.mean(-1, keepdim=True)).square().mean().sqrt()
    return float(off / size) if bool(off) else 0.0
