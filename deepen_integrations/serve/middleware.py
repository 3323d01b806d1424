"""Around every request: the key, errors in OpenAI's form, one line in the log, and counts."""

from __future__ import annotations

import hmac
import logging
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepen_core.errors import DeepenError
from deepen_integrations.serve.errors import ApiError, api_error
from deepen_integrations.serve.metrics import Metrics
from deepen_integrations.serve.streams import json_response

_log = logging.getLogger(__name__)
_OPEN = frozenset({"/", "/health", "/ready"})
"""Paths that need no key: those for probes, and the page, which asks for one."""
_QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Paths that are asked again and again, whose lines in the log are of level DEBUG."""
_GONE = 499  # nginx's status of a request whose client went away
_LONGEST_ID = 128


class Observed:
    """Gives each request an id, and logs and counts it when it is over; what fails unexpectedly gets 500.

    Args:
        app: Answers the request.
        metrics: Counts.
        paths: Paths that are counted by themselves; all others are counted together.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), _GONE
        given = Headers(scope=scope).get("x-request-id", "")
        known = given.isascii() and given.isprintable() and 0 < len(given) <= _LONGEST_ID
        request_id = given if known else uuid.uuid4().hex
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except Exception as problem:  # noqa: BLE001 (the log has it; its text may hold what is nobody's business)
            _log.error("crashed", exc_info=problem, extra={"facts": {"request_id": request_id}})
            if status == _GONE:
                error = ApiError(500, "This server failed, which is a bug: its log has the error.")
                await error_response(error)(scope, receive, observe)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"] if scope["path"] in self._paths else "other"
            method = scope["method"] if scope["method"] in {"GET", "POST"} else "other"
            self._metrics.requests.labels(path, method, status).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            if facts.get("gone"):
                self._metrics.gone.inc()
            level = logging.DEBUG if path in _QUIET else logging.INFO
            said = {"request_id": request_id, "method": method, "path": path, "status": status}
            _log.log(level, "request", extra={"facts": {**said, "seconds": round(seconds, 4), **facts}})


class Keyed:
    """Lets only requests with a key pass, if there are keys.

    Args:
        app: Answers the request.
        keys: The keys.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "http" and self._keys and scope["path"] not in _OPEN:
            kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            given = key.strip().encode("utf-8", "surrogateescape")
            # Each key is compared, so that the time tells nothing of them.
            known = [hmac.compare_digest(given, own) for own in self._keys]
            if kind.lower() != "bearer" or not any(known):
                message = "The API key is wrong or missing: send the header Authorization: Bearer KEY."
                await error_response(ApiError(401, message, code="invalid_api_key"))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def error_response(error: DeepenError) -> Response:
    """Returns the response to an error."""
    found = api_error(error)
    return json_response(found.body, found.status, found.headers)


async def on_error(request: Request, problem: Exception) -> Response:
    """Answers with an error of the engine or of this server."""
    assert isinstance(problem, DeepenError), "it is registered for these"
    response = error_response(problem)
    request.state.facts["error"] = str(problem)[:500]
    if response.status_code >= 500 and not isinstance(problem, ApiError):
        _log.error("failed", exc_info=problem)
    return response


async def on_gone(request: Request, _problem: Exception) -> Response:
    """Ends the request of a client that went away; nobody reads the response."""
    request.state.facts["gone"] = True
    return Response(status_code=_GONE)


async def on_http(_request: Request, problem: Exception) -> Response:
    """Answers for a path or a method that there is not."""
    status = getattr(problem, "status_code", 500)
    headers = dict(getattr(problem, "headers", None) or {})
    error = ApiError(status, f"{getattr(problem, 'detail', problem)}: this server has POST /v1/chat/completions.")
    return json_response(error.body, status, headers)
