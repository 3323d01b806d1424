"""The errors of the engine: each says what was wrong, with the numbers, and the way out.

All derive from `RuntimeError`, never from `ValueError` or `TypeError`: LlamaIndex swallows those two into the
answer "Empty Response".
"""

from __future__ import annotations

from typing_extensions import Self


class DeepenError(RuntimeError):
    """Base of every error that the engine raises on purpose."""


class CompatibilityWarning(UserWarning):
    """The members can be fused, but a measurement speaks against it; or against asking them many things at once."""


class ConfigurationError(DeepenError):
    """The ensemble cannot be built from these options (weights, main member, fusion, unknown fields)."""


class ModelFilesError(DeepenError):
    """A model folder lacks a file, or a file in it is cut short or damaged."""


class TokenizerError(DeepenError):
    """A tokenizer cannot serve: no fast version, or token values that cannot be read as bytes."""


class NoCommonTokensError(DeepenError):
    """The members' vocabularies share no token, so there are no anchors to fuse by."""


class PromptError(DeepenError):
    """The prompt cannot be decoded from: empty without a BOS token, or of an unknown shape."""


class ChatTemplateError(DeepenError):
    """A conversation was given, but a member has no chat template, or its template takes it in no form."""


class ContextWindowError(DeepenError):
    """The prompt is longer than the smallest context window of the members."""


class SamplingError(DeepenError):
    """An unknown sampling option, a value outside its range, or a constraint that cannot be followed."""


class MemberError(DeepenError):
    """A member failed while decoding."""


class NonFiniteLogitsError(MemberError):
    """A member returned NaN or +infinity, or no finite logit at all."""


class DecodingError(DeepenError):
    """A step failed outside of any member, or a constraint left nothing that main could say."""


class StructuredAnswerError(DeepenError):
    """An answer that was to be an object is none: it was cut off, or its class asks for more than its schema says."""

    @classmethod
    def from_answer(cls, wanted: str, text: str, finish_reason: str, problem: Exception) -> Self:
        """The error of one answer.

        Args:
            wanted: Name of the class.
            text: The answer.
            finish_reason: How it ended.
            problem: What the class said.
        """
        if finish_reason == "stop":
            return cls(
                f"The answer is JSON but no {wanted}: {brief(problem)}. Say in the schema what the class checks."
            )
        way_out = {"length": "raise max_new_tokens", "timeout": "raise timeout"}.get(finish_reason, "ask again")
        return cls(
            f"The answer ended ({finish_reason}) after {len(text)} characters, before its {wanted} was complete: "
            f"{way_out}, or bound the schema's texts and lists (maxLength, maxItems)."
        )


class NoToolCallError(DeepenError):
    """An answer that was to call a tool calls none: the model chose not to, or the call was cut off."""

    @classmethod
    def from_answer(cls, text: str, finish_reason: str) -> Self:
        """The error of one answer.

        Args:
            text: What it says instead.
            finish_reason: How it ended.
        """
        said = f"The answer calls no tool. It ended ({finish_reason}) and says {text[:200]!r}: "
        way_out = {"length": "raise max_new_tokens.", "timeout": "raise timeout."}
        return cls(said + way_out.get(finish_reason, "give tool_required=True, or a tool_choice, if it has to."))


class NotDoneError(DeepenError, TimeoutError):
    """The answer was not there in the time that the caller would wait; the request goes on."""


class ClosedError(DeepenError):
    """The ensemble was closed and its models released."""


def brief(problem: BaseException) -> str:
    """What an error says, on one line."""
    said = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {said if len(said) <= 600 else said[:600] + '...'}"
