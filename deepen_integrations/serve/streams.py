"""Answers while their client is there: whole responses, and server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepen_core.engine.merged import MergedOutput
from deepen_core.errors import DeepenError
from deepen_integrations.serve.errors import api_error
from deepen_integrations.serve.wire import Wire, encoded

if TYPE_CHECKING:
    from deepen_core.engine.handle import Handle
    from deepen_core.results import Chunk, Generation

_log = logging.getLogger(__name__)
T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed its connection, so there is nobody to answer."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of some work, which is cancelled once the client goes away.

    Args:
        request: The client's request, whose body was read.
        work: The work.

    Raises:
        ClientGoneError: If the client went away first.
    """
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """The answers of a request as server-sent events.

    However it ends, the requests to the engine are cancelled if they still run.

    Args:
        wire: Writes the events.
        handles: The answers.
        include_usage: Whether a last event has the numbers of tokens.
        interval_s: Is called after each event; returns the minimum number of seconds until the next one.
        seen: Is called with each piece.
        over: Is called at the end, with all answers if they are complete, and whether the client went away first.
    """

    def __init__(
        self,
        wire: Wire,
        handles: Sequence[Handle],
        *,
        include_usage: bool,
        interval_s: Callable[[], float],
        seen: Callable[[Chunk], None],
        over: Callable[[Sequence[Generation], bool], None],
    ) -> None:
        self._wire = wire
        self._handles = handles
        self._include_usage = include_usage
        self._interval_s = interval_s
        self._seen = seen
        self._over = over
        self._answers: dict[int, Generation] = {}
        self._gone = True  # until the last event was sent
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(media_type="text/event-stream", headers=headers)
        del self.headers["content-length"]  # nobody knows it yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until the last one, or until the client goes away."""
        try:
            with suppress(ClientGoneError):  # there is nobody to answer; `over` is told
                await while_connected(Request(scope, receive), self._send(send))
        finally:
            for handle in self._handles:
                handle.cancel()
            complete = len(self._answers) == len(self._handles)
            self._over(self._whole if complete else [], self._gone)

    @property
    def _whole(self) -> list[Generation]:
        return [self._answers[number] for number in range(len(self._handles))]

    async def _send(self, send: Send) -> None:
        """Sends the events; those of several answers that came with one step together."""

        async def write(body: bytes) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": True})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        event = self._wire.events(include_usage=self._include_usage).event
        if opening := self._wire.opening():
            await write(b"".join(map(event, opening)))
        try:
            async for step in MergedOutput([handle.output for handle in self._handles], self._interval_s):
                choices = [choice for number, chunk in step for choice in self._choices(number, chunk)]
                if choices:
                    await write(b"".join(map(event, choices)))
            if self._include_usage:
                await write(_sent(self._wire.last(self._whole)))
        except DeepenError as problem:
            _log.error("failed", exc_info=problem)
            await write(_sent(api_error(problem).body))
        self._gone = False
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _choices(self, number: int, chunk: Chunk) -> list[dict[str, Any]]:
        self._seen(chunk)
        if chunk.generation is not None:
            self._answers[number] = chunk.generation
        return self._wire.choices(number, chunk)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns a response with a value as JSON."""
    return Response(encoded(value), status, headers, media_type="application/json")


def _sent(event: dict[str, Any]) -> bytes:
    return b"data: " + encoded(event) + b"\n\n"
