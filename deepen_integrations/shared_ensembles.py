"""Ensembles that adapters share: loaded at the first use, once per process for equal options."""

from __future__ import annotations

import asyncio
import threading
import uuid
import weakref
from typing import TYPE_CHECKING, Any

from deepen_core.errors import ConfigurationError
from deepen_integrations.load_options import DEMO, LOADED, LoadOptions
from deepen_integrations.model_facts import Facts, facts_from_files

if TYPE_CHECKING:
    from deepen_core import Ensemble

_engines: weakref.WeakValueDictionary[LoadOptions, SharedEngine] = weakref.WeakValueDictionary()
_engines_lock = threading.Lock()


class SharedEngine:
    """One ensemble, held by every adapter with equal options and by nothing else.

    The first that needs it loads it; when the last one has closed or is gone, the models are released.
    Pickling and copying keep the options only, so a copy holds the same ensemble and carries no weights.

    Args:
        options: What to load.
        ensemble: An ensemble that is already there. It stays its owner's to close.

    Attributes:
        options: What to load.
        name: The members' names joined by `+`.
    """

    def __init__(self, options: LoadOptions, ensemble: Ensemble | None = None) -> None:
        self.options = options
        self.name = options.label
        self._loaded: Ensemble | None = None
        self._facts: Facts | None = None
        self._loading = threading.Lock()
        if ensemble is not None:
            self._take(ensemble)

    def ensemble(self, progress: bool) -> Ensemble:
        """The ensemble, loaded now if it was not yet.

        Args:
            progress: Show progress bars while loading.

        Raises:
            DeepenError: If the engine cannot load it. The next call tries again.
        """
        with self._loading:
            ensemble = self._loaded
            if ensemble is None:
                ensemble = _load(self.options, progress)
                weakref.finalize(self, ensemble.close)
                self._take(ensemble)
            return ensemble

    async def aensemble(self, progress: bool) -> Ensemble:
        """As `ensemble`; the event loop goes on while a thread loads."""
        loaded = self._loaded
        return loaded if loaded is not None else await asyncio.to_thread(self.ensemble, progress)

    @property
    def facts(self) -> Facts:
        """What frameworks plan with. Loads nothing; the members' small files are read once."""
        if self._facts is None:
            self._facts = facts_from_files(self.options)
        return self._facts

    def _take(self, ensemble: Ensemble) -> None:
        self._loaded = ensemble
        self._facts = Facts(ensemble.context_window, ensemble.planning_window, ensemble.has_chat_template)
        self.name = "+".join(member.name for member in ensemble.info.members)

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_engine, (self.options,)


def shared_engine(options: LoadOptions) -> SharedEngine:
    """The engine of these options, which nothing else holds if no adapter had equal ones."""
    with _engines_lock:
        engine = _engines.get(options)
        if engine is None:
            engine = _engines[options] = SharedEngine(options)
        return engine


def adopted_engine(ensemble: Ensemble) -> SharedEngine:
    """An engine for an ensemble that the caller has loaded, found again by its options in this process."""
    options = LoadOptions(models=f"{LOADED}{uuid.uuid4().hex}")
    with _engines_lock:
        engine = _engines[options] = SharedEngine(options, ensemble)
    return engine


def _load(options: LoadOptions, progress: bool) -> Ensemble:
    from deepen_core import Ensemble  # noqa: PLC0415 (imports torch)

    values = {n: getattr(options, n) for n in LoadOptions.model_fields if n != "models"}
    how: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if options.models == DEMO:
        return Ensemble.demo(**how)
    if isinstance(options.models, str):
        raise ConfigurationError(
            f"models={options.models!r} stands for an Ensemble that was given to from_ensemble and is not in "
            "this process any more. Name the model folders, or call from_ensemble again."
        )
    return Ensemble.load(list(options.models), progress=progress, **how)
