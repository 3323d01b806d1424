"""The first layers of a model, at least one of each kind, without its head: enough to try how it runs sequences.

A forward of a whole model takes from a tenth of a second to seconds on a CPU. What is tried (masks, positions, caches)
is the same in all layers of a kind, and ends before the head.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LEAST = 2  # layers, so that an error in one shows in the next
_INDICES = ("idx", "index", "layer_id", "layer_number")  # in the names of what tells a layer its place


def layer_list(model: Any) -> tuple[torch.nn.Module, str] | None:
    """Returns where a model has its layers: the longest list of modules that is not inside another one.

    Returns:
        A module and the name of its attribute; None for a model without a list of layers.
    """
    found: list[tuple[int, torch.nn.Module, str]] = []
    for path, module in model.named_modules():
        inside = any(part.isdigit() for part in path.split("."))
        lists = ((name, m) for name, m in module.named_children() if isinstance(m, torch.nn.ModuleList))
        found += [(len(layers), module, name) for name, layers in lists if not inside]
    _, parent, name = max(found, key=lambda entry: entry[0], default=(0, None, ""))
    return None if parent is None else (parent, name)


@contextmanager
def excerpt(model: Any) -> Iterator[None]:
    """Takes from a model, until the end of the context, its head and the layers that repeat kinds of earlier ones.

    A model that cannot run without them keeps them.

    Args:
        model: In evaluation mode.
    """
    place, head = layer_list(model), model.get_output_embeddings()
    if place is None or head is None:
        yield
        return
    parent, name = place
    layers = getattr(parent, name)
    try:
        setattr(parent, name, torch.nn.ModuleList(_first_of_each_kind(layers)))
        model.set_output_embeddings(_no_head(head))
        if not _runs(model):
            setattr(parent, name, layers)
            model.set_output_embeddings(head)
        yield
    finally:
        setattr(parent, name, layers)
        model.set_output_embeddings(head)


def _no_head(head: torch.nn.Module) -> torch.nn.Module:
    """Returns a head that does nothing; Mamba asks for the dtype of its weight all the same."""
    none = torch.nn.Identity()
    if isinstance(getattr(head, "weight", None), torch.Tensor):
        none.weight = head.weight
    return none


def _first_of_each_kind(layers: torch.nn.ModuleList) -> list[torch.nn.Module]:
    kinds: list[Hashable] = [_kind(layer) for layer in layers]
    last = max(kinds.index(kind) for kind in set(kinds))
    return list(layers)[: max(last + 1, _LEAST)]


def _kind(layer: torch.nn.Module) -> Hashable:
    """Returns everything plain that a layer's modules know, other than their place."""
    return tuple(
        (path, type(module).__qualname__, *sorted((k, repr(v)) for k, v in vars(module).items() if _tells(k, v)))
        for path, module in layer.named_modules()
    )


def _tells(name: str, value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and not any(part in name for part in _INDICES)


def _runs(model: Any) -> bool:
    try:
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001  its code may expect all layers in any way
        return False
    return True
