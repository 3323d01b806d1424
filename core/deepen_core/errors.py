"""The errors of the engine: each states what was wrong, with the numbers, and the way out.

All derive from plain `Exception`. LlamaIndex takes every `RuntimeError` for nested event loops and tells only of these,
and it takes `ValueError` and `TypeError` for text that it cannot parse, and goes on without the answer. So only errors
that mean just that, `UnusableAnswerError`, are `ValueError`s.
"""

from __future__ import annotations

from typing_extensions import Self


class DeepenError(Exception):
    """Base of every error that the engine raises on purpose."""


class CompatibilityWarning(UserWarning):
    """The members can be fused, but a measurement suggests poor results, or slow batches."""


class SchemaWarning(UserWarning):
    """Decoding cannot follow a part of a schema, so that answers are checked against it when they are complete."""


class ConfigurationError(DeepenError):
    """The ensemble cannot be built from these options (weights, main, unknown fields), or not on this machine."""


class ModelFilesError(DeepenError):
    """A model folder lacks a file, a file in it is truncated or damaged, or its model is in another format."""


class TokenizerError(DeepenError):
    """A tokenizer cannot be used: it has no fast version, needs a package, or its tokens cannot be read as bytes."""


class NoCommonTokensError(DeepenError):
    """The members' vocabularies share no token, so there are no anchors to fuse by."""


class PromptError(DeepenError):
    """The prompt cannot be used: it is empty and there is no BOS token, or it has an unknown shape."""


class ChatTemplateError(DeepenError):
    """A conversation was given, but a member has no chat template, or its template cannot render it in any form."""


class ChatTemplateLimitError(ChatTemplateError):
    """A member's chat template does not end in time, or makes far more than the conversation gives reason for."""


class ContextWindowError(DeepenError):
    """The prompt is longer than the smallest context window of the members."""


class SamplingError(DeepenError):
    """An unknown sampling option, a value outside its range, or a constraint that cannot be followed."""


class TraceError(DeepenError):
    """What was given to be read as a trace is not one."""


class MemberError(DeepenError):
    """A member failed while decoding."""


class NonFiniteLogitsError(MemberError):
    """A member returned NaN or +infinity, or no finite logit at all."""


class MemberTimeoutError(MemberError, TimeoutError):
    """A member took longer for a step than `step_timeout`, or has not ended such a step yet."""


class DecodingError(DeepenError):
    """A step failed outside of any member, or a constraint left no token that main could generate."""


class UnusableAnswerError(DeepenError, ValueError):
    """The members answered, but not in the form that was asked for. What reads answers may go on without this one."""


class StructuredAnswerError(UnusableAnswerError):
    """A structured answer is not a valid object: it was truncated, or its class demands more than its schema states."""

    @classmethod
    def from_answer(cls, wanted: str, text: str, finish_reason: str, problem: Exception) -> Self:
        """Returns the error of one answer.

        Args:
            wanted: Name of the class.
            text: The answer.
            finish_reason: How it ended.
            problem: The class's validation error.
        """
        if finish_reason == "stop":
            return cls(
                f"The answer is JSON but not a valid {wanted}: {brief(problem)}. State in the schema what the class "
                "checks."
            )
        way_out = {"length": "raise max_new_tokens", "timeout": "raise timeout"}.get(finish_reason, "ask again")
        return cls(
            f"The answer ended ({finish_reason}) after {len(text)} characters, before its {wanted} was complete: "
            f"{way_out}, or limit the schema's texts and lists (maxLength, maxItems)."
        )

    @classmethod
    def from_broken_schema(cls, wanted: str, problem: str) -> Self:
        """Returns the error of an answer that breaks what decoding could not follow of its schema.

        Args:
            wanted: Name of the object.
            problem: What it breaks, and where.
        """
        return cls(f"The answer is JSON but not a valid {wanted}: {problem}. Ask again, or simplify the schema.")


class NoToolCallError(UnusableAnswerError):
    """An answer that had to call a tool does not: the model chose not to, or the call was truncated."""

    @classmethod
    def from_answer(cls, text: str, finish_reason: str) -> Self:
        """Returns the error of one answer.

        Args:
            text: The text of the answer.
            finish_reason: How it ended.
        """
        said = f"The answer calls no tool. It ended ({finish_reason}) with the text {text[:200]!r}: "
        return cls(said + _ways_out(finish_reason, "set tool_required=True or a tool_choice if it must call one."))

    @classmethod
    def from_cut_call(cls, text: str, finish_reason: str) -> Self:
        """Returns the error of an answer whose call is not complete.

        Args:
            text: What there is of the call.
            finish_reason: How the answer ended.
        """
        said = f"The answer ended ({finish_reason}) inside a tool call, after {text[:200]!r}: "
        return cls(said + _ways_out(finish_reason, "leave out stop strings that occur in calls."))

    @classmethod
    def from_broken_call(cls, name: str, problem: str) -> Self:
        """Returns the error of a call that breaks what decoding could not follow of its tool's schema.

        Args:
            name: The tool.
            problem: What its arguments break, and where.
        """
        return cls(f"The call of tool {name!r} has arguments that its schema forbids: {problem}. Ask again.")


class NotDoneError(DeepenError, TimeoutError):
    """The answer was not complete within the time that the caller would wait; the request continues."""


class TimedOutError(DeepenError, TimeoutError):
    """The request's timeout passed during a first load, or before its answer was complete and it asked for an error."""


class QueueFullError(DeepenError):
    """More requests wait than `max_waiting` allows."""


class EvaluationError(DeepenError):
    """A task or an output folder of an evaluation cannot be used."""


class ClosedError(DeepenError):
    """The ensemble was closed and its models released."""


class CrashedError(ClosedError):
    """A fault outside of any request, its `__cause__`, ended every request under way.

    Attributes:
        for_good: Whether the ensemble answers no more.
    """

    for_good = False


def _ways_out(finish_reason: str, otherwise: str) -> str:
    return {"length": "raise max_new_tokens.", "timeout": "raise timeout."}.get(finish_reason, otherwise)


def is_failure(problem: BaseException) -> bool:
    """Whether an exception is an error, or a panic of Rust code, and not a request to stop such as Ctrl-C."""
    return isinstance(problem, Exception) or is_panic(problem)


def is_panic(problem: BaseException) -> bool:
    """Whether an exception is a panic of Rust code: pyo3's `PanicException`.

    It is not an `Exception`, and its class cannot be imported.
    """
    return type(problem).__name__ == "PanicException"


def brief(problem: BaseException) -> str:
    """Returns an error's type and message on one line."""
    said = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {said if len(said) <= 600 else said[:600] + '...'}"
