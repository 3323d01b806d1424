"""Tool calls and their results as text, in the most common format (Hermes, Qwen)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from deepen_core.chat.messages import Message, TrustedMarkup
from deepen_core.errors import PromptError

T = TypeVar("T")

CALL, CALL_END = TrustedMarkup("<tool_call>"), TrustedMarkup("</tool_call>")
TOOLS, TOOLS_END = TrustedMarkup("<tools>"), TrustedMarkup("</tools>")
RESPONSE, RESPONSE_END = TrustedMarkup("<tool_response>"), TrustedMarkup("</tool_response>")
TOOL_TAGS = frozenset({CALL, CALL_END, RESPONSE, RESPONSE_END})


def described_characters(messages: Sequence[Message]) -> int:
    """Returns the number of characters between `TOOLS` and `TOOLS_END`, which describe tools; 0 without these tags."""
    pieces = [piece for message in messages if isinstance(said := message.get("content"), list) for piece in said]
    marks = {str(piece): place for place, piece in enumerate(pieces) if isinstance(piece, TrustedMarkup)}
    if TOOLS not in marks or TOOLS_END not in marks:
        return 0
    return sum(len(piece) for piece in pieces[marks[TOOLS] + 1 : marks[TOOLS_END]])


def tool_call_text(name: str, arguments: Mapping[str, Any] | str | None) -> list[str]:
    """Returns one call as text: `<tool_call>`, a line of JSON with `name` and `arguments`, `</tool_call>`.

    Args:
        name: The name of the tool.
        arguments: A mapping, or JSON text as in OpenAI's API, which is kept as it is written; text that is not JSON
            becomes a JSON string.

    Returns:
        Strings to be joined, the tags among them as `TrustedMarkup`.

    Raises:
        PromptError: If the arguments cannot be written as JSON.
    """
    said = json.dumps(name, ensure_ascii=False)
    return [CALL, f'\n{{"name": {said}, "arguments": {arguments_text(name, arguments)}}}\n', CALL_END]


def tool_response_text(content: Iterable[T]) -> list[str | T]:
    """Returns a call's result as text: `<tool_response>`, the content, `</tool_response>`, each on lines of its own.

    Args:
        content: The strings of the result (and images, where a member reads them), to be joined.

    Returns:
        The same between the tags, which are `TrustedMarkup`.
    """
    return [RESPONSE, "\n", *content, "\n", RESPONSE_END]


def arguments_text(name: str, arguments: Mapping[str, Any] | str | None) -> str:
    """Returns the arguments of a call as JSON; see `tool_call_text`."""
    if isinstance(arguments, str):
        text = arguments.strip() or "{}"
        return text if _json_value(text) is not None else json.dumps(arguments, ensure_ascii=False)
    try:
        return json.dumps(dict(arguments or {}), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise PromptError(
            f"The arguments of a call of tool {name!r} are not JSON ({problem}): give texts, numbers, true, false, "
            "null, and lists and mappings of these."
        ) from problem


def read_arguments(text: str) -> dict[str, Any] | str:
    """Returns arguments given as JSON text as a mapping, or unchanged if they are not a valid JSON object."""
    value = _json_value(text.strip() or "{}")
    return value if isinstance(value, dict) else text


def _json_value(text: str) -> Any:
    """Returns the JSON value of a text, or None if it is invalid (or null)."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # an escape may stand for a lone surrogate
    except (ValueError, RecursionError):
        return None
    return value
