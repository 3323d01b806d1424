"""Instructions to members about tools and objects, and conversations with tool calls rendered as plain ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import cast

from deepen_core.chat.messages import Message, TrustedMarkup
from deepen_core.chat.template_adapter import as_text, pieces
from deepen_core.chat.tool_format import CALL, CALL_END, TOOLS, TOOLS_END
from deepen_core.errors import PromptError
from deepen_core.replies.form import ReplyForm

# The wording that Qwen's and Hermes's models were trained on.
_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within """
_CALLS = """

For each function call, return a json object with function name and arguments within """
_EXAMPLE = """
{"name": <function-name>, "arguments": <args-json-object>}
"""
# Small models that hear nothing but the result call the next tool that comes to mind.
_AFTER_RESULTS = "\nAnswer my question in plain words if you can."
_OBJECT_AFTER_RESULTS = "\n\nIf you can, answer my question as JSON now, such as "
_CALL_AFTER_RESULTS = "\n\nCall another function now: "


def instructed(messages: Sequence[Message], form: ReplyForm) -> list[Message]:
    """Returns a conversation that every member can read, whatever its chat template knows about tools.

    Instructions about the form of the answer are added to the system message, or make one. Tool calls become text of
    the assistant, their results a user message, which asks for an answer if it is the last one.

    Args:
        messages: In OpenAI's form: assistant messages may have `tool_calls`, and messages of role "tool" are results.
        form: The form that the answer must have.

    Raises:
        PromptError: If the arguments of a call are not JSON.
    """
    spoken = _spoken(messages)
    if messages and messages[-1]["role"] == "tool" and not _thought(messages):
        spoken[-1] = {**spoken[-1], "content": [*spoken[-1]["content"], _after_results(form, messages)]}
    told = _instructions(form)
    if not told:
        return spoken
    if spoken and spoken[0]["role"] in ("system", "developer"):
        first = spoken[0]
        return [{**first, "content": [*_only_text(first), "\n\n", *told]}, *spoken[1:]]
    return [{"role": "system", "content": told}, *spoken]


def _thought(messages: Sequence[Message]) -> bool:
    """Whether the model has thought since the last question.

    With more than results in their message, templates would take it for a new question and leave the thoughts out.
    """
    return any(message.get("reasoning_content") for message in _since_question(messages))


def _since_question(messages: Sequence[Message]) -> Iterator[Message]:
    """Yields the messages after the last question, the last one first."""
    return takewhile(lambda message: message["role"] != "user", reversed(messages))


def _after_results(form: ReplyForm, messages: Sequence[Message]) -> str:
    """Returns what to ask for after the result of a call."""
    if form.has_text:
        return _AFTER_RESULTS
    if form.calls == "must" and form.named is None:
        # Small models repeat the same call forever if a call is required and nothing names the other functions.
        called = {
            call["function"]["name"] for turn in _since_question(messages) for call in turn.get("tool_calls") or ()
        }
        others = [json.dumps(tool.name, ensure_ascii=False) for tool in form.callable if tool.name not in called]
        return f"{_CALL_AFTER_RESULTS}{' or '.join(others)}." if others else ""
    if form.schema is None or form.calls != "maybe":
        return ""
    example = dict.fromkeys(form.schema.get("properties", ()), "...")
    return f"{_OBJECT_AFTER_RESULTS}{json.dumps(example, ensure_ascii=False)}."


def _instructions(form: ReplyForm) -> list[str]:
    """Returns the instructions as strings to be joined."""
    parts: list[str] = []
    if form.callable:
        parts += [_TOOLS, TrustedMarkup(TOOLS + TOOLS_END), " XML tags:\n", TOOLS, "\n"]
        parts += ["\n".join(tool.described for tool in form.tools), "\n", TOOLS_END]
        parts += [_CALLS, CALL, CALL_END, " XML tags:\n", CALL, _EXAMPLE, CALL_END]
        if form.named is not None:
            parts.append(f"\n\nCall the function {json.dumps(form.named, ensure_ascii=False)} now.")
        elif form.calls == "must":
            parts.append("\n\nAnswer with function calls only.")
    if form.schema is not None and form.calls != "must":
        parts.append("\n\nWhen you need no more functions, answer" if parts else "Answer")
        parts.append(f" with JSON that follows this schema: {json.dumps(form.schema, ensure_ascii=False)}")
    return parts


def _spoken(messages: Sequence[Message]) -> list[Message]:
    """Returns the conversation without the fields and the role that only models with tools know."""
    spoken: list[Message] = []
    after_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        turn = message
        if is_result or message.get("tool_calls"):
            _only_text(message)
            turn = as_text(message)
        if is_result and after_result:
            before = spoken.pop()
            turn = {**before, "content": [*before["content"], "\n", *turn["content"]]}
        spoken.append(turn)
        after_result = is_result
    return spoken


def _only_text(message: Message) -> list[str]:
    """Returns the texts of a message, which must have no other parts."""
    said = pieces(message)
    if kinds := sorted({str(piece.get("type")) for piece in said if isinstance(piece, Mapping)}):
        raise PromptError(f"A message has a part of type {', '.join(kinds)}: with tools, only text can be read.")
    return cast("list[str]", said)
