"""The engine's errors as LangChain knows them, so that its middleware can tell what to do about one.

Each is both: the engine's error of the same name, and one of the kinds of `langchain_core.exceptions`. An overlong
conversation is summarised, a request that is wrong is not asked again, and what may pass is.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core.exceptions import ContextOverflowError, OutputParserException

from deepen_core import errors
from deepen_core.errors import DeepenError
from deepen_integrations.langchain.error_kinds import (
    ModelAPIError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelRateLimitError,
    ModelTimeoutError,
)


class ContextWindowError(errors.ContextWindowError, ContextOverflowError, ModelError):
    """See the engine's error of this name."""


class PromptError(errors.PromptError, ModelInvalidRequestError):
    """See the engine's error of this name."""


class SamplingError(errors.SamplingError, ModelInvalidRequestError):
    """See the engine's error of this name."""


class ChatTemplateError(errors.ChatTemplateError, ModelInvalidRequestError):
    """See the engine's error of this name."""


class ChatTemplateLimitError(errors.ChatTemplateLimitError, ModelInvalidRequestError):
    """See the engine's error of this name."""


class ConfigurationError(errors.ConfigurationError, ModelInvalidRequestError):
    """See the engine's error of this name."""


class NoCommonTokensError(errors.NoCommonTokensError, ModelInvalidRequestError):
    """See the engine's error of this name."""


class ModelFilesError(errors.ModelFilesError, ModelNotFoundError):
    """See the engine's error of this name."""


class TokenizerError(errors.TokenizerError, ModelNotFoundError):
    """See the engine's error of this name."""


class MemberError(errors.MemberError, ModelAPIError):
    """See the engine's error of this name. Memory that was short may be free the next time."""


class NonFiniteLogitsError(errors.NonFiniteLogitsError, ModelError):
    """See the engine's error of this name. The same request gives the same logits."""


class DecodingError(errors.DecodingError, ModelAPIError):
    """See the engine's error of this name."""


class TimedOutError(errors.TimedOutError, ModelTimeoutError):
    """See the engine's error of this name."""


class MemberTimeoutError(errors.MemberTimeoutError, ModelTimeoutError):
    """See the engine's error of this name."""


class QueueFullError(errors.QueueFullError, ModelRateLimitError):
    """See the engine's error of this name."""


class ClosedError(errors.ClosedError, ModelError):
    """See the engine's error of this name. A closed ensemble stays closed."""


class CrashedError(errors.CrashedError, ModelAPIError):
    """See `deepen_core.errors.CrashedError`."""


class StructuredAnswerError(errors.StructuredAnswerError, OutputParserException):
    """See the engine's error of this name. LangChain's parsers raise the other one."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are not made by the constructor, which adds a link to the message."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


KINDS: dict[type[DeepenError], type[DeepenError]] = {
    kind.__mro__[1]: kind
    for kind in (
        ContextWindowError,
        PromptError,
        SamplingError,
        ChatTemplateError,
        ChatTemplateLimitError,
        ConfigurationError,
        NoCommonTokensError,
        ModelFilesError,
        TokenizerError,
        MemberError,
        NonFiniteLogitsError,
        DecodingError,
        TimedOutError,
        MemberTimeoutError,
        QueueFullError,
        ClosedError,
        CrashedError,
    )
}
"""The kind of each of the engine's errors."""


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raises the engine's errors as LangChain's."""
    try:
        yield
    except DeepenError as error:
        if type(error) not in KINDS:
            raise
        # In no variable: its traceback would hold that one, and with it the models until garbage is collected.
        raise KINDS[type(error)](*error.args) from error
