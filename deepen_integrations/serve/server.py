"""Runs the application until it is asked to stop."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import uvicorn

from deepen_core.errors import ConfigurationError
from deepen_integrations.serve.app import app_of
from deepen_integrations.serve.http_protocol import BoundedHttpProtocol
from deepen_integrations.serve.logs import LogFormat, log_to_stderr
from deepen_integrations.serve.options import ServeOptions
from deepen_integrations.serve.served import Catalogue, Loader

if TYPE_CHECKING:
    from deepen_core import Ensemble

_log = logging.getLogger(__name__)
_WATCH_S = 0.2


def serve(
    models: Mapping[str, Loader | Ensemble],
    options: ServeOptions | None = None,
    *,
    sampling: Mapping[str, Mapping[str, Any]] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    log_format: LogFormat = "text",
) -> None:
    """Serves ensembles until SIGTERM or Ctrl-C.

    Then no new connections are taken, running requests have `shutdown_s` to end, and the ensembles are released.

    Args:
        models: As for `create_app`, as the next two.
        options: Keys and limits.
        sampling: Sampling options by model.
        host: The address to listen at.
        port: The port; 0 for one that is free.
        log_format: "text", or "json" for one object a line, on stderr.

    Raises:
        ConfigurationError: If the address cannot be used, or as from `create_app`.
        DeepenError: The error of a model that cannot be loaded, or has crashed.
    """
    options = ServeOptions() if options is None else options
    catalogue = Catalogue(models, sampling)
    listening = listen(host, port)
    log_to_stderr(log_format)
    place = listening.getsockname()
    _log.info("serving", extra={"facts": {"host": place[0], "port": place[1], "models": [s.name for s in catalogue]}})
    if not options.api_keys and not is_local(place[0]):
        _log.warning("every machine that reaches this address can use the models: set a key, or listen at 127.0.0.1")
    asyncio.run(run_until_stopped(server_of(catalogue, options), catalogue, listening))
    if catalogue.error is not None:
        raise catalogue.error


def server_of(catalogue: Catalogue, options: ServeOptions) -> uvicorn.Server:
    """Returns a server of some ensembles, which loads them once it runs."""
    config = uvicorn.Config(
        app_of(catalogue, options),
        http=BoundedHttpProtocol,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=options.shutdown_s,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        ConfigurationError: If there is no such address, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as problem:
        raise ConfigurationError(
            f"Cannot listen at {host}, port {port}: {problem}. Choose another --port."
        ) from problem


def is_local(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address).is_loopback


async def run_until_stopped(server: uvicorn.Server, catalogue: Catalogue, listening: socket.socket) -> None:
    """Runs a server of a catalogue until it is asked to stop, or an ensemble has failed."""
    watching = [
        asyncio.create_task(watch) for watch in (_stop_on_failure(server, catalogue), _spare_collector(catalogue))
    ]
    try:
        await server.serve(sockets=[listening])
    finally:
        for task in watching:
            task.cancel()
        gc.unfreeze()


async def _stop_on_failure(server: uvicorn.Server, catalogue: Catalogue) -> None:
    """Ends the server when an ensemble cannot be loaded or has crashed, so that whatever started it notices."""
    while catalogue.error is None:
        await asyncio.sleep(_WATCH_S)
    server.should_exit = True


async def _spare_collector(catalogue: Catalogue) -> None:
    """Once everything is loaded, exempts all objects that exist then from garbage collection.

    A collection that visits them takes a fifth of a second with the demo, and all streams stop meanwhile.
    """
    while not catalogue.ready:
        await asyncio.sleep(_WATCH_S)
    gc.collect()
    gc.freeze()
