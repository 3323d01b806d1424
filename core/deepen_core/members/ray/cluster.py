"""The connection of this process to a Ray cluster, and the actors that it starts there."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, ClassVar

from deepen_core.config.ray import LOCAL, RayConfig
from deepen_core.errors import ConfigurationError, DeepenError, brief
from deepen_core.members.ray.actor import MemberActor
from deepen_core.members.ray.link import LostActorError, NoReplyError

_HIDDEN = ("node:", "object_store_memory", "memory")  # beginnings of resources that errors leave out


class Connection:
    """A connection that members share: the last one to close it disconnects, and ends a cluster that was started here.

    A connection that this process has already, such as that of a Ray Serve replica, is used and left open.

    Args:
        address: See `RayConfig.address`.

    Raises:
        ConfigurationError: If Ray is not installed, there is no such cluster, or this process has connected to another.
    """

    _lock: ClassVar = threading.Lock()
    _users: ClassVar = 0
    _opened: ClassVar[str | None] = None  # the address that this class has connected to

    def __init__(self, address: str) -> None:
        if find_spec("ray") is None:
            raise ConfigurationError(
                "A member with ray options needs Ray, which is not installed: pip install 'deepen-integrations[ray]'."
            )
        with self._lock:
            self._connect(address)
            Connection._users += 1
        self.close = weakref.finalize(self, self._leave, os.getpid())
        """Gives the connection up; further calls do nothing."""

    @property
    def is_own(self) -> bool:
        """Whether the cluster was started here, so that no machine will join it."""
        return self._opened == LOCAL

    @classmethod
    def _connect(cls, address: str) -> None:
        import ray  # noqa: PLC0415 (an extra)

        opened = cls._opened
        if ray.is_initialized():
            if opened is not None and address not in (opened, LOCAL):
                raise ConfigurationError(
                    f"A member is to run in the Ray cluster {address!r}, but this process is connected to {opened!r} "
                    "for another one: give all members of a process the same address."
                )
            return
        if address == LOCAL:
            # A library that starts a cluster for itself must not report on it.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options = {"include_dashboard": False} if address == LOCAL else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="warning", configure_logging=False, **options)
        except Exception as problem:  # Ray raises anything
            raise ConfigurationError(
                f"The Ray cluster {address!r} cannot be reached ({brief(problem)}): start it, correct the address, or "
                f"use {LOCAL!r} for one on this machine."
            ) from problem
        cls._opened = address

    @classmethod
    def _leave(cls, process: int) -> None:
        import ray  # noqa: PLC0415 (an extra)

        if process != os.getpid():  # a fork, whose parent is still connected
            return
        with cls._lock:
            Connection._users -= 1
            if not cls._users and cls._opened is not None:
                cls._opened = None
                ray.shutdown()


class RayCall:
    """See `Call`.

    Args:
        reference: Ray's reference to the answer; None if the actor could not be asked.
        problem: Why not.
    """

    def __init__(self, reference: Any, problem: Exception | None = None) -> None:
        self._reference = reference
        self._problem = problem

    def result(self, timeout: float) -> Any:
        """See `Call.result`."""
        import ray  # noqa: PLC0415 (an extra)
        from ray import exceptions as kinds  # noqa: PLC0415

        if self._problem is not None:
            raise LostActorError(_first_line(self._problem))
        try:
            return ray.get(self._reference, timeout=timeout)
        except kinds.GetTimeoutError:
            raise NoReplyError from None
        except kinds.RayTaskError as problem:
            raise problem.cause from None
        except (kinds.RayError, ConnectionError, OSError) as problem:
            raise LostActorError(_first_line(problem)) from problem

    def done(self) -> bool:
        """See `Call.done`."""
        import ray  # noqa: PLC0415 (an extra)

        if self._problem is not None:
            return True
        try:
            return bool(ray.wait([self._reference], timeout=0)[0])
        except Exception:  # noqa: BLE001 (the connection is gone; whoever waits for the result is told)
            return True


class RayLink:
    """The way to an actor of a cluster, see `Link`.

    Args:
        options: The actor's resources.
    """

    def __init__(self, options: RayConfig) -> None:
        import ray  # noqa: PLC0415 (an extra)

        _check_connected()
        self._options = options
        placed = ray.remote(MemberActor).options(
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            resources=options.resources,
            runtime_env=options.runtime_env,
            max_restarts=0,  # a new one is started by this process, which knows what it has to be told
        )
        self._handle = placed.remote(max(1, int(options.num_cpus)))
        self.kill = weakref.finalize(self, _kill, self._handle, os.getpid())
        """See `Link.kill`."""

    def call(self, method: str, *given: object) -> RayCall:
        """See `Link.call`."""
        try:
            _check_connected()
            return RayCall(getattr(self._handle, method).remote(*given))
        except Exception as problem:  # noqa: BLE001 (the connection may be gone; whoever waits is told)
            return RayCall(None, problem)

    def ask(self, name: str, doing: str, timeout: float, method: str, *given: object) -> Any:
        """Returns an answer that the actor gives while it starts.

        Args:
            name: The member's, for errors.
            doing: What it does then, for errors.
            timeout: In seconds.
            method: Of `MemberActor`.
            given: Its arguments.

        Raises:
            ConfigurationError: If it fails or takes too long.
            DeepenError: What the actor has raised.
        """
        try:
            return self.call(method, *given).result(timeout)
        except DeepenError:
            raise
        except NoReplyError:
            raise ConfigurationError(
                f"The actor of member {name!r} has not ended {doing} after {timeout:g} s: allow more time in its ray "
                "options."
            ) from None
        except Exception as problem:
            raise ConfigurationError(f"The actor of member {name!r} failed at {doing}: {brief(problem)}.") from problem

    def wait_for_place(self, name: str, *, may_grow: bool) -> None:
        """Waits until the actor has started.

        Args:
            name: The member's, for errors.
            may_grow: Whether machines may join the cluster.

        Raises:
            ConfigurationError: If no machine of the cluster has the resources, or it does not start in time.
        """
        import ray  # noqa: PLC0415 (an extra)

        asked, timeout = _asked(self._options), self._options.start_timeout
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not may_grow and not any(_fits(asked, node) for node in nodes):
            raise ConfigurationError(f"Member {name!r} asks for {_listed(asked)}, and {_owned(nodes)}. {_WAYS_OUT}")
        try:
            self.call("started").result(timeout)
        except NoReplyError:
            free = _listed(ray.available_resources())
            raise ConfigurationError(
                f"Member {name!r} asks for {_listed(asked)}, and its actor has not started after {timeout:g} s "
                f"(start_timeout): {_owned(nodes)}, of which {free} are free. {_WAYS_OUT}"
            ) from None
        except Exception as problem:
            raise ConfigurationError(
                f"The actor of member {name!r} cannot be started ({brief(problem)}): all machines of the cluster need "
                "deepen-integrations in the same version, or a runtime_env that installs it."
            ) from problem


def _check_connected() -> None:
    """Raises a `ConnectionError` if there is no connection any more: Ray would start a cluster of its own."""
    import ray  # noqa: PLC0415 (an extra)

    if not ray.is_initialized():
        raise ConnectionError("this process is no longer connected to the cluster")


def _kill(handle: Any, process: int) -> None:
    """Ends an actor, unless it ended with its cluster or the connection to that, or belongs to the parent of a fork."""
    import ray  # noqa: PLC0415 (an extra)

    if ray.is_initialized() and process == os.getpid():
        with suppress(ray.exceptions.RayError, ConnectionError):
            ray.kill(handle)


_WAYS_OUT = "Ask for less in its ray options, close what holds resources, or add a machine that has them."


def _first_line(problem: Exception) -> str:
    """Returns an error's type and the first line of its message; Ray adds many on what may be the reason."""
    return f"{type(problem).__name__}: {next(iter(str(problem).splitlines()), '')}"


def _asked(options: RayConfig) -> dict[str, float]:
    return {"CPU": options.num_cpus, "GPU": options.num_gpus, **options.resources}


def _fits(asked: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= count for name, count in asked.items())


def _owned(nodes: Iterable[Mapping[str, float]]) -> str:
    return f"the machines of the cluster have {' / '.join(map(_listed, nodes))}"


def _listed(resources: Mapping[str, float]) -> str:
    """Returns resources in words, without those that nobody asks for."""
    told = [f"{n:g} {name}" for name, n in sorted(resources.items()) if n and not name.startswith(_HIDDEN)]
    return ", ".join(told) or "nothing"
