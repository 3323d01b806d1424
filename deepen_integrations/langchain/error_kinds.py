"""LangChain's kinds of model errors, also where LangChain is older than they are (langchain-core before 1.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core import exceptions

if TYPE_CHECKING or hasattr(exceptions, "ModelError"):
    from langchain_core.exceptions import (
        ModelAPIError,
        ModelError,
        ModelInvalidRequestError,
        ModelNotFoundError,
        ModelRateLimitError,
        ModelTimeoutError,
    )
else:

    class ModelError(exceptions.LangChainException):
        """A model could not be asked, or did not answer."""

        is_retryable = False

    class ModelInvalidRequestError(ModelError):
        """The request is wrong."""

    class ModelNotFoundError(ModelError):
        """The model is not there."""

    class ModelAPIError(ModelError):
        """The model failed; it may not the next time."""

        is_retryable = True

    class ModelTimeoutError(ModelError):
        """The model took too long."""

        is_retryable = True

    class ModelRateLimitError(ModelError):
        """The model has too much to do."""

        is_retryable = True


__all__ = [
    "ModelAPIError",
    "ModelError",
    "ModelInvalidRequestError",
    "ModelNotFoundError",
    "ModelRateLimitError",
    "ModelTimeoutError",
]
