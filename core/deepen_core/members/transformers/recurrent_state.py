"""What a recurrent model remembers of a text: the states of its layers, and in hybrid models keys and values too.

Each id changes a state in place, and nothing takes it out again, so going back needs a copy made earlier. A copy leaves
out keys and values of attention over the whole text: these only grow, and are shortened to the length of the copy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from deepen_core.members.transformers.kv_cache import cache_option


@dataclass(frozen=True)
class Recurrence:
    """How a model continues a text from its state.

    Attributes:
        several: Whether it can run several ids at once; otherwise only the first forward of a text can.
        singly: Up to this many ids are faster one by one.
        attributes: Names of attributes in which its modules keep states (RecurrentGemma).
    """

    several: bool
    singly: int = 1
    attributes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StateCopy:
    """A copy of a `State`, which nothing changes.

    Attributes:
        length: Number of ids that the state had seen.
        parts: Copies of what the cache itself, the modules, and then each layer of the cache held, by name.
    """

    length: int
    parts: list[dict[str, Any]]

    @property
    def kinds(self) -> list[str]:
        """The names under which it holds tensors of numbers."""
        return sorted({name for part in self.parts for name, value in part.items() if _has_numbers(value)})

    def spoilt(self, kind: str) -> StateCopy:
        """Returns a copy in which the tensors under a name are not a number."""

        def spoil(value: torch.Tensor) -> torch.Tensor:
            return torch.full_like(value, torch.nan) if value.is_floating_point() else value

        parts = [{n: _mapped(spoil, value) if n == kind else value for n, value in part.items()} for part in self.parts]
        return StateCopy(self.length, parts)


class State:
    """What a model remembers of one text.

    Args:
        model: The model.
        attributes: See `Recurrence`.

    Attributes:
        length: Number of ids that it has seen.
    """

    def __init__(self, model: Any, attributes: frozenset[str] = frozenset()) -> None:
        self._model = model
        self._option = cache_option(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._modules = {name: [m for m in model.modules() if name in vars(m)] for name in attributes}
        self._carried: dict[str, list[Any]] = {name: [None] * len(found) for name, found in self._modules.items()}
        # Models with other arguments make a cache of their own in the first forward, and return it.
        own = self._option in ("past_key_values", "cache")
        self._held: Any = DynamicCache(config=model.config) if own else None
        self.length = 0

    def run(self, ids: Sequence[int], **options: Any) -> torch.Tensor:
        """Runs further ids.

        Args:
            ids: The ids.
            options: Further options of the model's `forward`.

        Returns:
            The logits [ids, or as many as the options say, vocabulary].
        """
        if self._takes_positions:
            places = torch.arange(self.length, self.length + len(ids), device=self._model.device)
            options["position_ids"] = places[None]
        for name, modules in self._modules.items():
            for module, value in zip(modules, self._carried[name], strict=True):
                setattr(module, name, value)
        batch = torch.tensor([list(ids)], device=self._model.device)
        output = self._model(batch, use_cache=True, **{self._option: self._held}, **options)
        self._held = getattr(output, self._option, self._held)
        self._carried = {name: [getattr(m, name) for m in modules] for name, modules in self._modules.items()}
        self.length += len(ids)
        logits: torch.Tensor = output.logits[0]
        return logits

    def copy(self) -> StateCopy:
        """Copies it; keys and values of the whole text are left out."""
        own = {} if self._layers else {self._option: self._held}
        return StateCopy(self.length, _copied([own, self._carried, *map(_changing, self._layers)]))

    def restore(self, copy: StateCopy) -> None:
        """Goes back to a copy that was made of it.

        Args:
            copy: The copy, at most as long as this state; it can be restored again.
        """
        own, self._carried, *parts = _copied(copy.parts)
        for layer, part in zip(self._layers, parts, strict=True):
            if _grows(layer):
                _shorten(layer, self.length - copy.length)
            vars(layer).update(part)
        self._held = own.get(self._option, self._held)
        self.length = copy.length

    @property
    def _layers(self) -> list[Any]:
        """The layers of the cache, or a cache of another kind as a whole (xLSTM); none if it is a list (RWKV)."""
        if isinstance(self._held, Cache):
            return self._held.layers
        return [self._held] if hasattr(self._held, "__dict__") else []


def _grows(layer: Any) -> bool:
    """Whether a layer of a cache holds keys and values of the whole text."""
    return isinstance(layer, DynamicLayer) and not layer.is_sliding and layer.get_seq_length() > 0


def _shorten(layer: Any, by: int) -> None:
    """Shortens keys and values alone: a layer that has a state as well would refuse, or shorten nothing."""
    kind: Any = DynamicLayer if isinstance(layer, LinearAttentionCacheLayerMixin) else type(layer)
    if by:
        kind.crop(layer, -by)


def _changing(layer: Any) -> dict[str, Any]:
    """Returns what a layer of a cache holds and cannot shorten."""
    held: dict[str, Any] = vars(layer)
    if not _grows(layer):
        return held
    has_state = isinstance(layer, LinearAttentionCacheLayerMixin)
    return {name: value for name, value in held.items() if has_state and name not in ("keys", "values")}


def _mapped(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Returns a value with the tensors in its lists, tuples and dictionaries changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(change, part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(change, part) for part in value)
    return value


def _copied(value: Any) -> Any:
    return _mapped(torch.clone, value)


def _has_numbers(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(map(_has_numbers, parts))


def attributes_with_states(model: Any) -> frozenset[str]:
    """Returns the names of attributes in which the model's modules keep states from one forward to the next."""

    def kept() -> dict[tuple[str, str], Any]:
        modules = model.named_modules()
        return {(path, name): v for path, m in modules for name, v in vars(m).items() if isinstance(v, torch.Tensor)}

    state = State(model)
    state.run([1])
    before = _copied(kept())
    state.run([2])
    return frozenset(
        key[1] for key, value in kept().items() if key not in before or not torch.equal(value, before[key])
    )
