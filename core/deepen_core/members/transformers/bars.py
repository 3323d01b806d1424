"""Keeps `transformers` and the hub from drawing their progress bars where ours is not shown either."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils.logging import EmptyTqdm, set_tqdm_hook

_lock = threading.Lock()


@contextmanager
def weight_bars(shown: bool) -> Iterator[None]:
    """Draws no bars of `transformers` in this thread unless they are shown. Other threads' are drawn as before."""
    if shown:
        yield
        return
    here = threading.get_ident()
    others: Callable[..., Any] | None

    def bar(factory: Callable[..., Any], given: Sequence[Any], options: Mapping[str, Any]) -> Any:
        if threading.get_ident() == here:
            return EmptyTqdm(*given, **options)
        return others(factory, given, options) if others is not None else factory(*given, **options)

    with _lock:
        others = set_tqdm_hook(bar)
        try:
            yield
        finally:
            set_tqdm_hook(others)


@contextmanager
def hub_bars(shown: bool) -> Iterator[None]:
    """Draws no bars of the hub, in any thread, unless they are shown or the environment asks for them."""
    forced = constants.HF_HUB_DISABLE_PROGRESS_BARS is False
    with _lock:
        silenced = not (shown or forced or are_progress_bars_disabled())
        if silenced:
            disable_progress_bars()
        try:
            yield
        finally:
            if silenced:
                enable_progress_bars()
