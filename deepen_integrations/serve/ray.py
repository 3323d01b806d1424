"""The application as a Ray Serve deployment: `serve run deepen_integrations.serve.ray:app`.

A replica is a process with the whole application and its own copy of the ensembles. Before them, a deployment that
loads nothing reads the beginning of each prompt, for which Ray then prefers one replica, see
`deepen_integrations.serve.prefixes`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepen_core.config.base import Options
from deepen_core.errors import ConfigurationError
from deepen_integrations.extras import require

require("ray", extra="ray")

from ray import serve  # noqa: E402 (the error for a missing extra comes first)
from ray.serve.config import RequestRouterConfig  # noqa: E402

from deepen_integrations.load_options import DEMO  # noqa: E402
from deepen_integrations.serve.app import app_of  # noqa: E402
from deepen_integrations.serve.options import ServeOptions  # noqa: E402
from deepen_integrations.serve.prefixes import prefix_of  # noqa: E402
from deepen_integrations.serve.served import Catalogue, Loader  # noqa: E402

if TYPE_CHECKING:
    from deepen_core import Ensemble

_SCOPE = ("type", "http_version", "method", "scheme", "path", "query_string", "headers")
_ROUTER = "deepen_integrations.serve.ray_router:PrefixRouter"


class RayOptions(Options):
    """What is deployed, as `serve run ... NAME=VALUE` gives it. Unknown names are rejected."""

    ensembles: str = DEMO
    """Named ensembles, or paths of YAML files, joined by commas; each replica loads all of them."""
    replicas: int = Field(default=1, ge=1)
    """Number of replicas."""
    cpus: float = Field(default=1.0, gt=0)
    """CPU cores of a replica, and its number of threads."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a replica."""
    prefix_characters: int = Field(default=512, ge=0)
    """Requests whose prompts begin with the same characters prefer one replica; 0 for no preference."""
    max_answers: int = Field(default=256, ge=1)
    """See `ServeOptions`; of a replica."""
    stream_interval_s: float = Field(default=0.05, ge=0)
    """See `ServeOptions`."""


class Replica:
    """The application with its own ensembles, all of which are loaded before it takes requests.

    Args:
        names: Names or paths of ensembles.
        options: Keys and limits.
        threads: Number of threads that compute.

    Raises:
        DeepenError: If an ensemble cannot be loaded.
    """

    def __init__(self, names: list[str], options: ServeOptions, threads: int) -> None:
        import torch  # noqa: PLC0415 (the deployment without ensembles does not need it)

        torch.set_num_threads(threads)
        self._catalogue = Catalogue({name: loader_of(name) for name in names})
        self._catalogue.start().join()
        if self._catalogue.error is not None:
            raise self._catalogue.error
        self._app = app_of(self._catalogue, options)

    async def answer(self, _prefix: str, scope: dict[str, Any], body: bytes) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the messages of the application's response to a request.

        Args:
            _prefix: The beginning of the prompt, by which Ray has chosen this replica.
            scope: What ASGI says of the request.
            body: Its body.
        """
        sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        requests, gone = iter([{"type": "http.request", "body": body, "more_body": False}]), asyncio.Event()

        async def receive() -> dict[str, Any]:
            for request in requests:
                return request
            await gone.wait()
            return {"type": "http.disconnect"}

        working = asyncio.ensure_future(self._app(scope, receive, sent.put))  # type: ignore[arg-type]
        working.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            while (message := await sent.get()) is not None:
                yield message
            await working
        finally:
            gone.set()
            working.cancel()

    def __del__(self) -> None:
        self._catalogue.close()


class Entrance:
    """Takes requests, and hands each to the replica that its prompt prefers.

    Args:
        replicas: A handle to them.
        most: Maximum number of bytes of a body; of a longer one the replicas get one byte more, and refuse it.
        characters: See `RayOptions.prefix_characters`.
    """

    def __init__(self, replicas: Any, most: int, characters: int) -> None:
        self._replicas = replicas
        self._most = most
        self._characters = characters

    async def __call__(self, request: Request) -> Response:
        """Answers one request."""
        body = bytearray()
        try:
            async for part in request.stream():
                body += part[: self._most + 1 - len(body)]
        except ClientDisconnect:
            return Response(status_code=499)
        prefix = prefix_of(bytes(body), self._characters) if self._characters else ""
        scope = {name: request.scope[name] for name in _SCOPE}
        messages = self._replicas.options(stream=True).answer.remote(prefix, scope, bytes(body))
        return _Relayed(messages)


class _Relayed(Response):
    """A response that a replica writes. If it is not sent to its end, the replica is told to stop.

    Args:
        messages: The messages of the replica's application.
    """

    def __init__(self, messages: Any) -> None:
        super().__init__()
        self._messages = messages

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Sends the response; Ray cancels this when the client goes away."""
        complete = False
        try:
            async for message in self._messages:
                await send(_without_id(message))
                complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        finally:
            if not complete:
                self._messages.cancel()


def _without_id(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a message of a response without the id of the request, which Ray's proxy adds itself."""
    if message["type"] != "http.response.start":
        return message
    return {**message, "headers": [pair for pair in message["headers"] if pair[0] != b"x-request-id"]}


def loader_of(name: str) -> Loader:
    """Returns what loads an ensemble: the demo, a named one, or that of a YAML file."""

    def load() -> Ensemble:
        from deepen_core import Ensemble  # noqa: PLC0415 (imports torch)

        return Ensemble.demo() if name == DEMO else Ensemble.from_config(name, progress=False)

    return load


def app(arguments: Mapping[str, Any]) -> Any:
    """Returns the application for `serve run` and `serve deploy`.

    Args:
        arguments: `RayOptions`, as text or as numbers. API keys are read from `DEEPEN_API_KEY`, as by `deepen serve`.

    Raises:
        ConfigurationError: For an unknown option or a value outside its range.
    """
    options: RayOptions = RayOptions.parse(dict(arguments), ConfigurationError)
    keys = tuple(key for key in os.environ.get("DEEPEN_API_KEY", "").split(",") if key)
    served = ServeOptions.checked(
        {"api_keys": keys, "max_answers": options.max_answers, "stream_interval_s": options.stream_interval_s}
    )
    names = [name.strip() for name in options.ensembles.split(",")]
    replicas = serve.deployment(Replica).options(
        name="ensembles",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        max_ongoing_requests=options.max_answers,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
    )
    entrance = serve.deployment(Entrance).options(
        name="entrance", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=options.max_answers * options.replicas
    )
    bound = replicas.bind(names, served, max(1, int(options.cpus)))
    return entrance.bind(bound, served.max_body_bytes, options.prefix_characters)
