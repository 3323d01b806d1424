"""The ensembles that a server has: loaded one after the other in the background, and closed with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.errors import ConfigurationError
from deepen_integrations.serve.errors import ApiError

if TYPE_CHECKING:
    from deepen_core import Ensemble

Status = Literal["waiting", "loading", "ready", "failed", "closed"]
Loader = Callable[[], "Ensemble"]
_log = logging.getLogger(__name__)
_RETRY_S = 5  # after so many seconds a client may ask an ensemble again that is being loaded


class ServedEnsemble:
    """One ensemble under the name by which clients ask for it.

    Args:
        name: The name.
        source: Loads the ensemble; or an ensemble, which stays its owner's to close.
        sampling: Options of every answer for which a request gives none.

    Attributes:
        created: When it was added, in seconds since 1970.
        status: How far it is.
        step: The last step of loading that was done.
        facts: Its members, once it is loaded: their names, which is main, and which can read conversations.
        error: Why it could not be loaded, or will answer no more.
    """

    def __init__(self, name: str, source: Loader | Ensemble, sampling: SamplingParams) -> None:
        self.name = name
        self.sampling = sampling
        self.created = int(time.time())
        self.status: Status = "waiting"
        self.step = ""
        self.facts: dict[str, Any] = {}
        self.error: Exception | None = None
        self._load: Loader | None = source if callable(source) else None
        self._ensemble: Ensemble | None = None if callable(source) else source
        self._lock = threading.Lock()

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble.

        Raises:
            ApiError: If it is not loaded.
        """
        ensemble = self._ensemble
        if self.status == "ready" and ensemble is not None:
            return ensemble
        if self.error is not None:
            raise ApiError(503, f"{self.name!r} has failed: {self.error}", code="model_failed")
        raise ApiError(
            503,
            f"{self.name!r} is not loaded yet ({self.step or self.status}); /ready tells when it is.",
            code="model_loading",
            retry_after_s=_RETRY_S,
        )

    def asked(self, member: str | None) -> Ensemble:
        """Returns what answers a request: the ensemble, or one of its members alone.

        Raises:
            ApiError: If it is not loaded, or has no such member.
        """
        ensemble = self.ensemble
        if member is None:
            return ensemble
        try:
            return ensemble.alone(member)
        except ConfigurationError as problem:
            raise ApiError(400, str(problem), param="member") from None

    def load(self) -> None:
        """Loads the ensemble and warms it up. A failure is kept in `error`."""
        self.status = "loading"
        try:
            with self._following():
                ensemble = self._ensemble if self._load is None else self._load()
                assert ensemble is not None, "there is an ensemble or its loader"
                ensemble.warm_up()
            self.facts = _facts_of(ensemble)
        except Exception as problem:  # noqa: BLE001 (`serve` raises it; requests report it)
            self.fail(problem)
            return
        if not self._take(ensemble):
            self._release(ensemble)

    def fail(self, problem: Exception) -> None:
        """Keeps the error because of which it will answer no more."""
        with self._lock:
            if self.status != "closed":
                self.error, self.status = problem, "failed"

    def close(self) -> None:
        """Releases the ensemble; one that is still being loaded is released once it is."""
        with self._lock:
            loading, self.status = self.status == "loading", "closed"
        if not loading and self._ensemble is not None:
            self._release(self._ensemble)

    def report(self) -> dict[str, Any]:
        """Returns how far it is, as plain data."""
        said = {"status": self.status, "step": self.step or None, "error": str(self.error) if self.error else None}
        return {name: value for name, value in said.items() if value is not None}

    def _take(self, ensemble: Ensemble) -> bool:
        """Begins to answer with an ensemble that was loaded; returns whether there is still need for it."""
        with self._lock:
            if self.status == "closed":
                return False
            self._ensemble, self.status = ensemble, "ready"
            return True

    def _release(self, ensemble: Ensemble) -> None:
        if self._load is not None:
            ensemble.close()

    @contextmanager
    def _following(self) -> Iterator[None]:
        """Keeps the engine's last message about its progress as `step`."""
        engine, follower = logging.getLogger("deepen_core"), _Follower(self)
        level = engine.level
        if not engine.isEnabledFor(logging.INFO):
            engine.setLevel(logging.INFO)
        engine.addHandler(follower)
        try:
            yield
        finally:
            engine.removeHandler(follower)
            engine.setLevel(level)


def _facts_of(ensemble: Ensemble) -> dict[str, Any]:
    info = ensemble.info
    chats = [member.name for member in info.members if member.has_chat_template]
    return {"members": [member.name for member in info.members], "main": info.main, "chats": chats}


class _Follower(logging.Handler):
    def __init__(self, served: ServedEnsemble) -> None:
        super().__init__(logging.INFO)
        self._served = served

    def emit(self, record: logging.LogRecord) -> None:
        self._served.step = record.getMessage()


class Catalogue:
    """All ensembles of a server, by name.

    Args:
        models: What loads each, or an ensemble that is loaded already, by the names that clients use.
        sampling: Sampling options of an ensemble for which a request gives none, by name.

    Raises:
        ConfigurationError: If there are none, or options for one that is not there.
        SamplingError: For wrong options.
    """

    def __init__(
        self, models: Mapping[str, Loader | Ensemble], sampling: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        options = dict(sampling or {})
        if not models or not all(models) or options.keys() - models.keys():
            raise ConfigurationError(f"The models are {[*models]}: give at least one, and each a name.")
        self._served = {
            name: ServedEnsemble(name, source, resolve_sampling(None, options.get(name, {})))
            for name, source in models.items()
        }

    def __iter__(self) -> Iterator[ServedEnsemble]:
        return iter(self._served.values())

    def named(self, name: str) -> ServedEnsemble:
        """Returns the ensemble of a name.

        Raises:
            ApiError: If there is none.
        """
        found = self._served.get(name)
        if found is None:
            known = ", ".join(map(repr, self._served))
            message = f"The model {name[:200]!r} does not exist: this server has {known}."
            raise ApiError(404, message, code="model_not_found", param="model")
        return found

    @property
    def ready(self) -> bool:
        """Whether every ensemble is loaded."""
        return all(served.status == "ready" for served in self)

    @property
    def error(self) -> Exception | None:
        """Why the first ensemble that has failed has."""
        return next((served.error for served in self if served.error is not None), None)

    def start(self) -> threading.Thread:
        """Loads all of them in a thread, one after the other."""
        thread = threading.Thread(target=self._load_all, name="deepen-loading", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Releases all of them."""
        for served in self:
            served.close()

    def _load_all(self) -> None:
        for served in self:
            if served.status == "closed":
                return
            started = time.perf_counter()
            served.load()
            facts = {"model": served.name, "seconds": round(time.perf_counter() - started, 3)}
            if served.error is None:
                _log.info("loaded", extra={"facts": facts})
            else:
                _log.error("loading failed", extra={"facts": {**facts, "error": str(served.error)}})
