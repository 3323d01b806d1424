"""Errors in OpenAI's form, with the status code that its clients expect."""

from __future__ import annotations

import copyreg
from typing import Any

from deepen_core import errors
from deepen_core.errors import DeepenError


class ApiError(DeepenError):
    """A request that is not answered.

    Args:
        status: The HTTP status code.
        message: What is wrong, and the way out.
        code: OpenAI's code for the kind of error, if it has one.
        param: The field of the request that is wrong, if it is one.
        retry_after_s: Seconds after which the same request may succeed, if it may.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are not made by the constructor, which takes more than the message."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers beyond those that every response has."""
        found = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {**found, "www-authenticate": "Bearer"} if self.status == 401 else found


_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
_RETRY_S = 1
_STATUSES: tuple[tuple[type[DeepenError], int, str | None], ...] = (
    (errors.ContextWindowError, 400, "context_length_exceeded"),
    (errors.PromptError, 400, None),
    (errors.ChatTemplateError, 400, None),
    (errors.SamplingError, 400, None),
    (errors.ConfigurationError, 400, None),
    (errors.TimedOutError, 504, "timeout"),
    (errors.MemberTimeoutError, 504, "timeout"),
    (errors.QueueFullError, 429, "rate_limit_exceeded"),
    (errors.ClosedError, 503, "model_closed"),
)
"""The status and the code of the engine's errors; of all others, 500."""


def api_error(error: DeepenError) -> ApiError:
    """Returns the response to an error of the engine."""
    if isinstance(error, ApiError):
        return error
    found = ((status, code) for kind, status, code in _STATUSES if isinstance(error, kind))
    status, code = next(found, (500, None))
    return ApiError(status, str(error), code=code, retry_after_s=_RETRY_S if status == 429 else None)
