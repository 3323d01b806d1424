"""Ensembles that adapters share: loaded on first use, once per process for equal options."""

from __future__ import annotations

import asyncio
import threading
import uuid
import weakref
from typing import TYPE_CHECKING, Any

from deepen_core.errors import ConfigurationError
from deepen_integrations.load_options import DEMO, LOADED, LoadOptions
from deepen_integrations.model_facts import ModelFacts, facts_from_files

if TYPE_CHECKING:
    from deepen_core import Ensemble

_ensembles: weakref.WeakValueDictionary[LoadOptions, SharedEnsemble] = weakref.WeakValueDictionary()
_ensembles_lock = threading.Lock()


class SharedEnsemble:
    """One ensemble, referenced only by the adapters with equal options.

    The first adapter that needs it loads it; the models are freed when the last one is closed or collected. Pickles
    and copies contain the options only, so a copy shares the ensemble and carries no weights.

    Args:
        options: What to load.
        ensemble: An ensemble that is already loaded; its owner closes it.

    Attributes:
        options: What to load.
        name: The members' names joined by `+`.
    """

    def __init__(self, options: LoadOptions, ensemble: Ensemble | None = None) -> None:
        self.options = options
        self.name = options.label
        self._loaded: Ensemble | None = None
        self._facts: ModelFacts | None = None
        self._loading = threading.Lock()
        if ensemble is not None:
            self._take(ensemble)

    def ensemble(self, progress: bool, *, chat: bool = False) -> Ensemble:
        """Returns the ensemble, loading it on first use.

        Args:
            progress: Show progress bars while loading.
            chat: Do not load members without a chat template.

        Raises:
            ChatTemplateError: With `chat`, if a member without a chat template would have to be loaded.
            DeepenError: If the engine cannot load it. The next call tries again.
        """
        with self._loading:
            ensemble = self._loaded
            if ensemble is None:
                ensemble = _load(self.options, progress, chat)
                weakref.finalize(self, ensemble.close)
                self._take(ensemble)
            return ensemble

    async def aensemble(self, progress: bool, *, chat: bool = False) -> Ensemble:
        """Like `ensemble`, but loads in a thread, so the event loop is not blocked."""
        loaded = self._loaded
        return loaded if loaded is not None else await asyncio.to_thread(self.ensemble, progress, chat=chat)

    @property
    def facts(self) -> ModelFacts:
        """What frameworks plan prompts with. Loads nothing; the members' small files are read once."""
        if self._facts is None:
            self._facts = facts_from_files(self.options)
        return self._facts

    def _take(self, ensemble: Ensemble) -> None:
        self._loaded = ensemble
        self._facts = ModelFacts(
            ensemble.context_window,
            ensemble.planning_window,
            ensemble.has_chat_template,
            thinks=ensemble.thinking != "never",
        )
        self.name = "+".join(member.name for member in ensemble.info.members)

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_ensemble, (self.options,)


def shared_ensemble(options: LoadOptions) -> SharedEnsemble:
    """Returns the one shared ensemble of these options."""
    with _ensembles_lock:
        shared = _ensembles.get(options)
        if shared is None:
            shared = _ensembles[options] = SharedEnsemble(options)
        return shared


def adopted_ensemble(ensemble: Ensemble) -> SharedEnsemble:
    """Shares an ensemble that the caller has loaded, under options that identify it within this process."""
    options = LoadOptions(models=f"{LOADED}{uuid.uuid4().hex}")
    with _ensembles_lock:
        shared = _ensembles[options] = SharedEnsemble(options, ensemble)
    return shared


def _load(options: LoadOptions, progress: bool, chat: bool) -> Ensemble:
    from deepen_core import Ensemble  # noqa: PLC0415 (imports torch)

    values = {n: getattr(options, n) for n in LoadOptions.model_fields if n != "models"}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if options.models == DEMO:
        return Ensemble.demo(**given)
    if isinstance(options.models, str):
        raise ConfigurationError(
            f"models={options.models!r} refers to an Ensemble that was given to from_ensemble and no longer exists in "
            "this process. Name the model folders, or call from_ensemble again."
        )
    return Ensemble.load(list(options.models), chat=chat, progress=progress, **given)
