"""Tool calls and their results as text, in the form that most models have seen (Hermes, Qwen)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from deepen_core.chat.messages import TrustedMarkup
from deepen_core.errors import PromptError

T = TypeVar("T")

CALL, CALL_END = TrustedMarkup("<tool_call>"), TrustedMarkup("</tool_call>")
RESPONSE, RESPONSE_END = TrustedMarkup("<tool_response>"), TrustedMarkup("</tool_response>")
TOOL_TAGS = frozenset({CALL, CALL_END, RESPONSE, RESPONSE_END})


def tool_call_text(name: str, arguments: Mapping[str, Any] | str | None) -> list[str]:
    """One call as text: `<tool_call>`, a line of JSON with `name` and `arguments`, `</tool_call>`.

    Args:
        name: Of the tool.
        arguments: A mapping, or JSON as OpenAI's interface has it, which is kept as it is written; a text that is no
            JSON becomes a JSON string.

    Returns:
        Strings to be joined, the tags among them as `TrustedMarkup`.

    Raises:
        PromptError: If the arguments are nothing that JSON can say.
    """
    said = json.dumps(name, ensure_ascii=False)
    return [CALL, f'\n{{"name": {said}, "arguments": {arguments_text(name, arguments)}}}\n', CALL_END]


def tool_response_text(content: Iterable[T]) -> list[str | T]:
    """The result of one call as text: `<tool_response>`, the content, `</tool_response>`, each on lines of its own.

    Args:
        content: The strings (and images, where a member reads them) of the result, to be joined.

    Returns:
        The same with strings around it, the tags among them as `TrustedMarkup`.
    """
    return [RESPONSE, "\n", *content, "\n", RESPONSE_END]


def arguments_text(name: str, arguments: Mapping[str, Any] | str | None) -> str:
    """The arguments of a call as JSON, for which see `tool_call_text`."""
    if isinstance(arguments, str):
        text = arguments.strip() or "{}"
        return text if _json_value(text) is not None else json.dumps(arguments, ensure_ascii=False)
    try:
        return json.dumps(dict(arguments or {}), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise PromptError(
            f"The arguments of a call of tool {name!r} are no JSON ({problem}): give texts, numbers, true, false, "
            "null, and lists and mappings of these."
        ) from problem


def read_arguments(text: str) -> dict[str, Any] | str:
    """Arguments that are written as JSON, as a mapping; as they are, if they are none that can be written as text."""
    value = _json_value(text.strip() or "{}")
    return value if isinstance(value, dict) else text


def _json_value(text: str) -> Any:
    """The value that is written, null as none at all."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # an escape may stand for a lone surrogate
    except (ValueError, RecursionError):
        return None
    return value
