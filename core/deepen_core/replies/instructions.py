"""What members are told of tools and objects, and conversations in which tools were called, as plain conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from deepen_core.conversation import Markup, Message
from deepen_core.errors import PromptError
from deepen_core.replies.form import ReplyForm
from deepen_core.tool_text import CALL, CALL_END, tool_call_text, tool_response_text

# In the words that Qwen's and Hermes's models were trained on.
_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within """
_CALLS = """

For each function call, return a json object with function name and arguments within """
_EXAMPLE = """
{"name": <function-name>, "arguments": <args-json-object>}
"""


def instructed(messages: Sequence[Message], form: ReplyForm) -> list[Message]:
    """A conversation as every member reads it, whatever its chat template knows of tools.

    What the answer has to look like is added to the system message, or makes one. Calls of tools become text of the
    assistant's, what came of them a message of the user's.

    Args:
        messages: In OpenAI's form: an assistant's may have `tool_calls`, and those of role "tool" are results.
        form: What the answer has to look like.

    Raises:
        PromptError: If the arguments of a call are no JSON.
    """
    spoken = _spoken(messages)
    told = _instructions(form)
    if not told:
        return spoken
    if spoken and spoken[0]["role"] == "system":
        first = spoken[0]
        return [{**first, "content": [*_strings(first.get("content")), "\n\n", *told]}, *spoken[1:]]
    return [{"role": "system", "content": told}, *spoken]


def _instructions(form: ReplyForm) -> list[str]:
    """Strings to be joined."""
    parts: list[str] = []
    if form.callable:
        parts += [_TOOLS, Markup("<tools></tools>"), " XML tags:\n", Markup("<tools>"), "\n"]
        parts += ["\n".join(tool.described for tool in form.tools), "\n", Markup("</tools>")]
        parts += [_CALLS, CALL, CALL_END, " XML tags:\n", CALL, _EXAMPLE, CALL_END]
        if form.named is not None:
            parts.append(f"\n\nCall the function {json.dumps(form.named, ensure_ascii=False)} now.")
        elif form.calls == "must":
            parts.append("\n\nAnswer with function calls only.")
    if form.schema is not None:
        parts += ["\n\n"] if parts else []
        parts.append(f"Answer with JSON that follows this schema: {json.dumps(form.schema, ensure_ascii=False)}")
    return parts


def _spoken(messages: Sequence[Message]) -> list[Message]:
    """The conversation without the fields and the role that only models with tools know."""
    spoken: list[Message] = []
    after_result = False
    for message in messages:
        if message["role"] == "tool":
            result = tool_response_text(_strings(message.get("content")))
            if after_result:
                before = spoken.pop()
                result = [*before["content"], "\n", *result]
            spoken.append({"role": "user", "content": result})
        elif message.get("tool_calls"):
            spoken.append({"role": message["role"], "content": _with_calls(message)})
        else:
            spoken.append(message)
        after_result = message["role"] == "tool"
    return spoken


def _with_calls(message: Message) -> list[str]:
    """What an assistant said, and the calls behind it."""
    parts = _strings(message.get("content"))
    for call in message["tool_calls"]:
        function = call["function"]
        parts += ["\n"] if any(parts) else []
        parts += tool_call_text(function["name"], function["arguments"])
    return parts


def _strings(content: Any) -> list[str]:
    """The texts of a message's content."""
    parts: list[Any] = [content] if isinstance(content, str) else list(content or ())
    texts = [part if isinstance(part, str) else part["text"] for part in parts if _is_text(part)]
    if len(texts) < len(parts):
        kinds = sorted({str(part.get("type")) for part in parts if not _is_text(part)})
        raise PromptError(f"A message holds a part of type {', '.join(kinds)}: beside tools only text can be read.")
    return texts


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (part.get("type") == "text" and isinstance(part.get("text"), str))
