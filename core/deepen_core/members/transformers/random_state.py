"""The random state of torch, which loading leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_USUALLY_CPU = torch.device("cpu")


class _OwnRandomness(TorchDispatchMode):
    """Gives each operation of this thread that draws random numbers a generator of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and options.get("generator") is None:
            device = args[0].device if args and isinstance(args[0], torch.Tensor) else options.get("device")
            device = torch.device(device or _USUALLY_CPU)
            taking = _taking_generator(func)
            if taking is not None and device.type != "meta":
                return taking(*args, **options, generator=self._generator(device))
        return func(*args, **options)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(0)
        return self._generators[device]


def _taking_generator(func: Any) -> Callable[..., Any] | None:
    """Returns the form of an operation that takes a generator; None if there is none."""
    if any(argument.name == "generator" for argument in func._schema.arguments):  # noqa: SLF001  the only way to ask
        found: Callable[..., Any] = func
        return found
    return getattr(func.overloadpacket, "generator", None)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leaves torch's global random states unchanged by what this thread does, while others may use them.

    Saving and restoring them would take back what other threads draw meanwhile.
    """
    with _OwnRandomness():
        yield
