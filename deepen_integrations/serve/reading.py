"""Reads the body of a request within the limits."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from deepen_integrations.serve.errors import ApiError
from deepen_integrations.serve.options import ServeOptions
from deepen_integrations.serve.streams import ClientGoneError

_DRAINED = 8  # of a body that is too large, at most so many times the limit is read, so that the client gets the answer


async def read_body(request: Request, options: ServeOptions) -> bytes:
    """Returns the body of a request.

    Raises:
        ApiError: If it is not JSON by its type, too large, or comes too slowly.
        ClientGoneError: If the client goes away meanwhile.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Browsers send this type to other sites only if these agree, so that no web page can use a local server.
    if kind != "application/json":
        raise ApiError(415, f"The body is {kind or 'of no type'}: send JSON with content-type application/json.")
    try:
        return await asyncio.wait_for(_read(request, options.max_body_bytes), options.body_timeout_s)
    except asyncio.TimeoutError:
        raise ApiError(408, f"The body was not complete after {options.body_timeout_s} s.") from None
    except ClientDisconnect:
        raise ClientGoneError from None


async def _read(request: Request, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        elif size > most * _DRAINED:
            break
    if size > most:
        raise ApiError(413, f"The body has more than {most} bytes, the most that this server takes.")
    return b"".join(parts)
