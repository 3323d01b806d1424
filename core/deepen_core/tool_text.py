"""Tool calls and their results as text, in the form that most models have seen (Hermes, Qwen)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from deepen_core.conversation import Markup
from deepen_core.errors import PromptError

CALL, CALL_END = Markup("<tool_call>"), Markup("</tool_call>")
RESPONSE, RESPONSE_END = Markup("<tool_response>"), Markup("</tool_response>")
TOOL_TAGS = frozenset({CALL, CALL_END, RESPONSE, RESPONSE_END})


def tool_call_text(name: str, arguments: Mapping[str, Any] | str | None) -> list[str]:
    """One call as text: `<tool_call>`, a line of JSON with `name` and `arguments`, `</tool_call>`.

    Args:
        name: Of the tool.
        arguments: A mapping, or JSON as OpenAI's interface has it, which is kept as it is written; a text that is no
            JSON becomes a JSON string.

    Returns:
        Strings to be joined, the tags among them as `Markup`.

    Raises:
        PromptError: If the arguments are nothing that JSON can say.
    """
    said = json.dumps(name, ensure_ascii=False)
    return [CALL, f'\n{{"name": {said}, "arguments": {_json(name, arguments)}}}\n', CALL_END]


def tool_response_text(content: Iterable[str]) -> list[str]:
    """The result of one call as text: `<tool_response>`, the content, `</tool_response>`, each on lines of its own.

    Args:
        content: The strings of the result, to be joined.

    Returns:
        Strings to be joined, the tags among them as `Markup`.
    """
    return [RESPONSE, "\n", *content, "\n", RESPONSE_END]


def _json(name: str, arguments: Mapping[str, Any] | str | None) -> str:
    if isinstance(arguments, str):
        text = arguments.strip() or "{}"
        return text if is_json(text) else json.dumps(arguments, ensure_ascii=False)
    try:
        return json.dumps(dict(arguments or {}), ensure_ascii=False)
    except (TypeError, ValueError) as problem:
        raise PromptError(
            f"The arguments of a call of tool {name!r} are no JSON ({problem}): give texts, numbers, true, false, "
            "null, and lists and mappings of these."
        ) from problem


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
