"""Prompts as callers give them: a text, or a conversation as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepen_core.errors import PromptError

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
_DEEPEST = 100
"""Maximum depth of lists and mappings in a message."""


class TrustedMarkup(str):
    """Markup that the library itself puts into a message, such as `<tool_call>`.

    It may contain a member's control tokens that are not special, which a plain `str` in a user or system message
    never turns into; it may not contain special tokens either. Data from outside (JSON) is never of this type.
    """

    __slots__ = ()


class TextStart(str):
    """An empty prompt after which a text starts, as after the one before it: for members without BOS, after EOS."""

    __slots__ = ()


def check_unicode(text: str, where: str) -> None:
    """Rejects lone surrogates, which no tokenizer accepts.

    Args:
        text: The text to be encoded.
        where: What the text is, as the start of an error message.

    Raises:
        PromptError: If it is not a text, or holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise PromptError(f"{where} is a {type(text).__name__}: give a text.")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise PromptError(
            f"{where} holds a lone surrogate ({text[problem.start]!r}) at character {problem.start}: it was decoded "
            "incorrectly; repair it, for instance with text.encode('utf-8', 'replace').decode()."
        ) from None


def prompt_list(prompt: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """Returns the prompts as a list, and whether a single one was given. Several prompts are not checked one by one.

    Raises:
        PromptError: If it is not a text, a conversation or a list of these.
    """
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence):
        raise PromptError(f"A prompt is a text or a list of messages, not a {type(prompt).__name__}.")
    if prompt and isinstance(prompt[0], Mapping):
        return [check_messages(prompt)], True
    if any(not isinstance(p, (str, Sequence)) for p in prompt):
        raise PromptError("A list of prompts holds texts or conversations (lists of messages).")
    return list(prompt), False  # type: ignore[arg-type]


def check_messages(messages: Sequence[Any]) -> list[Message]:
    """Checks the shape of a conversation.

    Raises:
        PromptError: If it is not a list or is empty, a message has no role, or no template could render its content or
            tool calls.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise PromptError(f"A conversation is a list of messages, not a {type(messages).__name__}.")
    if not messages:
        raise PromptError(
            "The conversation is empty: give at least one message such as {'role': 'user', 'content': 'hi'}."
        )
    for number, message in enumerate(messages):
        _check_depth(message, number)
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(
                f"Message {number} is {message!r}: each message is a mapping with 'role' and 'content', such as "
                "{'role': 'user', 'content': 'hi'}."
            )
        content = message.get("content")
        parts = content if isinstance(content, (list, tuple)) else []
        known = content is None or isinstance(content, (str, list, tuple))
        if not known or not all(isinstance(part, (str, Mapping)) for part in parts):
            raise PromptError(
                f"Message {number} has content {content!r}: it is a text, or a list of texts and of parts such as "
                "{'type': 'text', 'text': 'hi'}."
            )
        _check_calls(message.get("tool_calls"), number)
        _check_strings(message, f"Message {number}")
    return list(messages)


def begun_answer(messages: Sequence[Message]) -> tuple[Sequence[Message], str]:
    """Splits a conversation that was checked from the beginning of the answer to it.

    That is a last message of the assistant with a field `prefix` that is true.

    Returns:
        The conversation before the answer, and how the answer begins; an empty text if it does not yet.

    Raises:
        PromptError: If there is nothing before the answer, its beginning is not a text alone, or `prefix` is neither
            true nor false.
    """
    last = messages[-1]
    prefix = last.get("prefix")
    if last["role"] != "assistant" or prefix is None or prefix is False:
        return messages, ""
    if prefix is not True:
        raise PromptError(f"The last message has prefix={prefix!r}: it is true or false.")
    begun = last.get("content") or ""
    if len(messages) == 1 or not isinstance(begun, str) or last.get("tool_calls"):
        raise PromptError(
            f"The last message begins the answer (prefix) with {begun!r} and {len(last.get('tool_calls') or ())} tool "
            "calls: give it a text as content, no calls, and a message before it."
        )
    return messages[:-1], begun


def _check_calls(calls: Any, number: int) -> None:
    known = calls is None or isinstance(calls, (list, tuple))
    if not known or not all(isinstance(call, Mapping) and _is_function(called(call)) for call in calls or ()):
        raise PromptError(
            f"Message {number} has tool_calls {calls!r}: it is a list of calls such as "
            "{'function': {'name': 'add', 'arguments': {'a': 1}}}, with the arguments as a mapping or as JSON."
        )


def called(call: Mapping[str, Any]) -> Any:
    """Returns the function of one of a message's `tool_calls`: `name` and `arguments`, nested in `function` or not."""
    return call.get("function", call)


def _is_function(function: Any) -> bool:
    return (
        isinstance(function, Mapping)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), (str, Mapping, type(None)))
    )


def _check_depth(message: Any, number: int) -> None:
    """Rejects a message that is nested deeper than what reads it can follow."""
    level = [message]
    for _ in range(_DEEPEST):
        level = [
            part
            for value in level
            if isinstance(value, (Mapping, list, tuple))
            for part in (value.values() if isinstance(value, Mapping) else value)
        ]
        if not level:
            return
    raise PromptError(f"Message {number} is nested more than {_DEEPEST} levels deep, which is the limit: flatten it.")


def _check_strings(value: Any, where: str) -> None:
    if isinstance(value, str):
        check_unicode(value, where)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _check_strings(key, f"{where}, the name of a field")
            _check_strings(entry, f"{where}, field {key!r}")
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_strings(entry, where)
