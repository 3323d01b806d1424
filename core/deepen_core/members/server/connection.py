"""Requests to one server: a pool of connections that a thread of its own uses, deadlines, and bounds of replies."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from deepen_core.errors import brief

T = TypeVar("T")

_AT_ONCE = 64  # requests on the way; the others wait
_SHOWN = 300  # characters of a reply that an error quotes
_HEADERS = {"accept": "application/json", "accept-encoding": "identity"}


class ServerError(Exception):
    """A request without a reply that can be used.

    Attributes:
        status: The status of the reply, if there was one.
        is_final: Whether the same request would fail again.
    """

    def __init__(self, message: str, *, status: int | None = None, is_final: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_final = is_final


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        path: Of the endpoint, below the server's address.
        body: What is sent, as JSON; None to GET.
        limit: Maximum number of bytes of the reply.
    """

    path: str
    body: Mapping[str, Any] | None = None
    limit: int = 2**24


@dataclass(frozen=True)
class Reply:
    """The reply to a request.

    Attributes:
        content: Its body.
        is_reconnected: Whether a new connection was opened for it, so that the server may be another one.
    """

    content: bytes
    is_reconnected: bool


@dataclass
class Traffic:
    """What went over the wire, without the headers.

    Attributes:
        requests: Number of requests with a reply.
        bytes_sent: Of the bodies of requests.
        bytes_received: Of the bodies of replies.
    """

    requests: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Connection:
    """Sends requests to one server. Redirects are not followed, and certificates are checked.

    Args:
        url: The address.
        key: Sent as a bearer token.
        timeout_s: Seconds that a request may take as a whole.

    Attributes:
        url: As given.
        traffic: What went over the wire.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        self.url = url
        self.traffic = Traffic()
        self._timeout_s = timeout_s
        limits = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE)
        headers = _HEADERS if key is None else {**_HEADERS, "authorization": f"Bearer {key}"}
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout_s, limits=limits)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_work, args=[self._loop], name=f"deepen-server-{url}", daemon=True).start()
        weakref.finalize(self, _end, self._loop, self._client)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts work that awaits `send`."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def ask(self, request: Request) -> Reply:
        """Sends a request, and waits for the reply.

        Raises:
            ServerError: As `send`.
        """
        return self.start(self.send(request)).result()

    async def send(self, request: Request) -> Reply:
        """Sends a request.

        Raises:
            ServerError: If there is no reply in time, or one that is not a success, or too long.
        """
        opened: list[str] = []
        try:
            status, content = await asyncio.wait_for(self._exchange(request, opened), self._timeout_s)
        except (asyncio.TimeoutError, httpx.TimeoutException) as problem:
            raise ServerError(f"no reply from {self.url} to {request.path} within {self._timeout_s:g} s") from problem
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            raise ServerError(f"no reply from {self.url} to {request.path}: {brief(problem)}") from problem
        if status != httpx.codes.OK:
            said = " ".join(content[:_SHOWN].decode(errors="replace").split())
            # What is wrong with a request stays wrong; a server that is busy or starts may answer it later.
            final = status < httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.TOO_MANY_REQUESTS
            message = f"{self.url} answers {request.path} with status {status}: {said}"
            raise ServerError(message, status=status, is_final=final)
        return Reply(content, bool(opened))

    async def _exchange(self, request: Request, opened: list[str]) -> tuple[int, bytes]:
        """Returns the status and the content of the reply."""

        async def note(event: str, _info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                opened.append(event)

        sent = b"" if request.body is None else json.dumps(request.body, separators=(",", ":")).encode()
        async with self._client.stream(
            "GET" if request.body is None else "POST",
            f"{self.url}{request.path}",
            content=sent or None,
            headers={"content-type": "application/json"} if sent else None,
            extensions={"trace": note},
        ) as response:
            content = bytearray()
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > request.limit:
                    raise ServerError(
                        f"the reply of {self.url} to {request.path} is longer than {request.limit:,} bytes"
                    )
        self.traffic.requests += 1
        self.traffic.bytes_sent += len(sent)
        self.traffic.bytes_received += len(content)
        return response.status_code, bytes(content)


def _work(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
    """Ends the requests on the way, the connections and the thread; does not wait for that."""

    async def close() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.aclose()

    asyncio.run_coroutine_threadsafe(close(), loop).add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
