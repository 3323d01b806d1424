"""The output layer of a model, as fast for the last two places of a text, or for a few texts, as for one place.

`linear` multiplies hidden states [places, width] by weights [vocabulary, width]. Two things make it slow:

1. Hidden states with the strides of a slice are taken for a batch. They get the strides of their shape.
2. On AMD CPUs, MKL multiplies 2 to 8 places in float32 by a large matrix up to 3.7 times as fast if the result lies in
   memory place by place within a token. On Intel CPUs, that takes twice as long. The vendor decides rather than a
   timing: the two ways round differently, and every start must give the same bits, also on a busy machine.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

_FEW = range(2, 9)
_CPU = Path("/proc/cpuinfo")


def prepare(layer: torch.nn.Module) -> Callable[[], None]:
    """Makes an output layer fast for a few places, with the same results up to rounding.

    Returns:
        What makes it again as it was.
    """
    hook = layer.register_forward_pre_hook(_dense)
    weight = getattr(layer, "weight", None)
    if type(layer) is torch.nn.Linear and isinstance(weight, torch.Tensor) and _multiplied_by_mkl(weight):
        layer.forward = _Few(layer)  # type: ignore[method-assign,assignment]

    def restore() -> None:
        hook.remove()
        if isinstance(vars(layer).get("forward"), _Few):
            del layer.forward

    return restore


class _Few:
    """The forward of a linear layer, which multiplies a few places in the faster way.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        self._layer = layer

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns logits [..., vocabulary] of hidden states [..., width]."""
        weight: torch.Tensor = self._layer.weight
        bias: torch.Tensor | None = self._layer.bias
        places = hidden.shape[:-1].numel()
        few = places in _FEW and hidden.dtype == weight.dtype and _multiplied_by_mkl(weight)
        if not few or not _token_by_token_is_faster():
            return F.linear(hidden, weight, bias)
        found = _token_by_token(hidden.reshape(places, -1), weight)  # [places, vocabulary]
        return (found if bias is None else found + bias).reshape(*hidden.shape[:-1], -1)


def _multiplied_by_mkl(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkl.is_available()


def _token_by_token(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (weight @ hidden.T).T.contiguous()


@cache
def _token_by_token_is_faster() -> bool:
    """Whether MKL multiplies a few hidden states faster in that way on this machine."""
    text = _CPU.read_text() if _CPU.exists() else platform.processor()
    return "AuthenticAMD" in text


def _dense(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Gives the hidden states that reach an output layer [sequences, places, width] the strides of their shape.

    A model cuts them to the last places, and `matmul` takes such a slice, even of one sequence, for a batch: it copies
    the whole output layer for each sequence, which takes Qwen 0.5B in bfloat16 eight times as long as the whole
    forward of a short prompt. `contiguous` alone does not mend the slice of one sequence: it counts as contiguous.
    """
    hidden = inputs[0]
    return (hidden.flatten(0, -2).contiguous().unflatten(0, hidden.shape[:-1]), *inputs[1:])
