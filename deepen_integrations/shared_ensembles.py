"""Ensembles that adapters share: loaded on first use, once per process for equal options."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
import weakref
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen_core.config import MemberConfig, SamplingParams
from deepen_core.demo import member_paths
from deepen_core.engine.deadline import seconds_left
from deepen_core.engine.event_loop import running_loop
from deepen_core.engine.task import Lane
from deepen_core.errors import ConfigurationError, TimedOutError
from deepen_integrations.load_options import DEMO, LOADED, LoadOptions
from deepen_integrations.model_facts import ModelFacts, facts_from_files

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.members.context_budget import ContextBudget

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
        self._budget: ContextBudget | None = None
        self._loading = threading.Lock()
        self._lane = Lane(1, "deepen-load")
        if ensemble is not None:
            self._take(ensemble)

    def ensemble(self, progress: bool, *, chat: bool = False, within: SamplingParams | None = None) -> Ensemble:
        """Returns the ensemble, loading it on first use.

        Args:
            progress: Show progress bars while loading.
            chat: Do not load members without a chat template.
            within: Options of the request that it is loaded for: the load counts towards its timeout.

        Raises:
            ChatTemplateError: With `chat`, if a member without a chat template would have to be loaded.
            TimedOutError: If the timeout of the request passes first; the load goes on.
            DeepenError: If the engine cannot load it. The next call tries again.
        """
        if self._loaded is not None:
            return self._loaded
        left = None if within is None else seconds_left(within)
        if left is None:
            return self._load_once(progress, chat)
        loading = self._lane.run(partial(self._load_once, progress, chat))
        wait([loading], left)
        return _loaded_in_time(loading, within)

    async def aensemble(self, progress: bool, *, chat: bool = False, within: SamplingParams | None = None) -> Ensemble:
        """Like `ensemble`, but loads in a thread, so the event loop is not blocked."""
        running_loop()
        if self._loaded is not None:
            return self._loaded
        left = None if within is None else seconds_left(within)
        if left is None:
            return await asyncio.to_thread(self._load_once, progress, chat)
        loading = self._lane.run(partial(self._load_once, progress, chat))
        await asyncio.wait([asyncio.wrap_future(loading)], timeout=left)
        return _loaded_in_time(loading, within)

    def _load_once(self, progress: bool, chat: bool) -> Ensemble:
        with self._loading:
            ensemble = self._loaded
            if ensemble is None:
                ensemble = _load(self.options, progress, chat)
                weakref.finalize(self, ensemble.close)
                self._take(ensemble)
            return ensemble

    def budget(self) -> ContextBudget:
        """Returns how much of a prompt fits all members. Loads no weights: the tokenizers are read once.

        Raises:
            DeepenError: If a member's files cannot be found or used.
        """
        with self._loading:
            if self._budget is None:
                self._budget = _read_budget(self.options)
            return self._budget

    @property
    def is_measured(self) -> bool:
        """Whether `budget` returns at once."""
        return self._budget is not None

    @property
    def facts(self) -> ModelFacts:
        """What frameworks ask of a model at its construction. Loads nothing; small files are read once."""
        if self._facts is None:
            self._facts = facts_from_files(self.options)
        return self._facts

    def _take(self, ensemble: Ensemble) -> None:
        self._loaded = ensemble
        self._budget = ensemble.budget
        self._facts = replace(
            facts_from_files(self.options),
            main_window=self._budget.main_window,
            has_chat_template=self._budget.has_chat_template,
            thinks=ensemble.thinking != "never",
        )
        self.name = "+".join(member.name for member in ensemble.info.members)

    def unlock(self) -> None:
        """Forgets a load that was under way in the parent of this process."""
        self._loading, self._lane = threading.Lock(), Lane(1, "deepen-load")

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_ensemble, (self.options,)


def _loaded_in_time(loading: Future[Ensemble], within: SamplingParams | None) -> Ensemble:
    """Returns a loaded ensemble.

    Raises:
        TimedOutError: If it is still being loaded.
    """
    if loading.done():
        return loading.result()
    loading.cancel()  # if it has not begun
    limit = None if within is None else within.timeout
    raise TimedOutError(
        f"The models were still being loaded after {limit} s (timeout). The load goes on: ask again, allow more time, "
        "or load them before the first request with warm_up()."
    )


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
    return Ensemble.load(_members(options), chat=chat, progress=progress, **given)


def _read_budget(options: LoadOptions) -> ContextBudget:
    from deepen_core import Ensemble  # noqa: PLC0415 (imports torch)

    return Ensemble.read_budget(
        _members(options),
        main=options.main,
        weights=options.weights,
        prompts=options.prompts,
        max_context_window=options.max_context_window,
    )


def _members(options: LoadOptions) -> list[Path | MemberConfig]:
    if options.models == DEMO:
        return list(member_paths())
    if isinstance(options.models, str):
        raise ConfigurationError(
            f"models={options.models!r} refers to an Ensemble that was given to from_ensemble and no longer exists in "
            "this process. Name the model folders, or call from_ensemble again."
        )
    return list(options.models)


def _unlocked() -> None:
    """Replaces the locks in a fork, which may have been held by threads that exist only in its parent."""
    global _ensembles_lock  # noqa: PLW0603  a lock cannot be made anew in place
    _ensembles_lock = threading.Lock()
    for shared in list(_ensembles.values()):
        shared.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlocked)
