"""Answers while their client is there: whole responses, and server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

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


class EventStream(StreamingResponse):
    """The answers of a request as server-sent events.

    However it ends, the requests to the engine are cancelled if they still run.

    Args:
        wire: Writes the events.
        handles: The answers.
        include_usage: Whether a last event has the numbers of tokens.
        seen: Is called with each piece.
        over: Is called at the end, with all answers if they are complete, and whether the client went away first.
    """

    def __init__(
        self,
        wire: Wire,
        handles: Sequence[Handle],
        *,
        include_usage: bool,
        seen: Callable[[Chunk], None],
        over: Callable[[Sequence[Generation], bool], None],
    ) -> None:
        self._wire = wire
        self._handles = handles
        self._include_usage = include_usage
        self._seen = seen
        self._over = over
        self._answers: dict[int, Generation] = {}
        self._gone = True  # until the last event was sent
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        self._bodies = self._written()
        super().__init__(self._bodies, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until the last one, or until the client goes away."""
        try:
            await while_connected(Request(scope, receive), self.stream_response(send))
        except ClientGoneError:
            pass  # `over` hears of it
        finally:
            for handle in self._handles:
                handle.cancel()
            await self._bodies.aclose()
            complete = len(self._answers) == len(self._handles)
            self._over([self._answers[number] for number in range(len(self._handles))] if complete else [], self._gone)

    async def _written(self) -> AsyncGenerator[bytes, None]:
        """Yields events; what several answers got in one step comes together."""
        event = self._wire.events(include_usage=self._include_usage).event
        if opening := b"".join(map(event, self._wire.opening())):
            yield opening
        try:
            async with aclosing(merged(self._handles)) as steps:
                async for step in steps:
                    choices = [choice for number, chunk in step for choice in self._choices(number, chunk)]
                    if choices:
                        yield b"".join(map(event, choices))
            if self._include_usage:
                yield _sent(self._wire.last([self._answers[number] for number in range(len(self._handles))]))
        except DeepenError as problem:
            _log.error("failed", exc_info=problem)
            yield _sent(api_error(problem).body)
        self._gone = False
        yield b"data: [DONE]\n\n"

    def _choices(self, number: int, chunk: Chunk) -> list[dict[str, Any]]:
        self._seen(chunk)
        if chunk.generation is not None:
            self._answers[number] = chunk.generation
        return self._wire.choices(number, chunk)


async def merged(handles: Sequence[Handle]) -> AsyncGenerator[Sequence[tuple[int, Chunk]], None]:
    """Yields the pieces of several answers as they come: those that are there together, each with its answer's number.

    Raises:
        DeepenError: The error that ends one of them, after the pieces before it.
    """
    if len(handles) == 1:
        async for chunk in handles[0]:
            yield [(0, chunk)]
        return
    coming = {asyncio.ensure_future(anext(handle)): number for number, handle in enumerate(handles)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            step: list[tuple[int, Chunk]] = []
            failures: list[DeepenError] = []
            for task in sorted(done, key=coming.__getitem__):
                number = coming.pop(task)
                try:
                    step.append((number, task.result()))
                except StopAsyncIteration:
                    continue
                except DeepenError as failure:
                    failures.append(failure)
                    continue
                coming[asyncio.ensure_future(anext(handles[number]))] = number
            if step:
                yield step
            if failures:
                raise failures[0]
    finally:
        for task in coming:
            task.cancel()


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns a response with a value as JSON."""
    return Response(encoded(value), status, headers, media_type="application/json")


def _sent(event: dict[str, Any]) -> bytes:
    return b"data: " + encoded(event) + b"\n\n"
