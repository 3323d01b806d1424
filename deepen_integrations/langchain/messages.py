"""Converts LangChain's messages to the engine's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from deepen_core.errors import PromptError

_ROLES: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
}
_ROLE_ALIASES = {"human": "user", "ai": "assistant"}
"""Roles of a `ChatMessage` that have another name in chat templates."""
_CALLS = frozenset("tool_use tool_call tool_call_chunk invalid_tool_call input_json_delta function_call".split())
"""Blocks of an assistant's content that repeat its tool calls."""
_NOT_SAID = frozenset("reasoning thinking redacted_thinking non_standard".split())
"""Blocks of an assistant's content that are no part of what it said: thoughts, and what only a provider knows."""
_TEXTS = {"text": "text", "text-plain": "text", "refusal": "refusal"}
"""Types of blocks that are text, and the key of the text in each."""


def plain_messages(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """Returns the role, the content and the thoughts of each message.

    Args:
        messages: A conversation of text only.

    Raises:
        PromptError: If a message has no role in a conversation, contains anything but text, or calls tools.
    """
    for message in messages:
        if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
            raise PromptError("An AIMessage calls tools, which a text-completion model cannot read: use a chat model.")
    return [_plain(message) for message in messages]


def _plain(message: BaseMessage) -> dict[str, str]:
    role, blocks = _role(message), _blocks(message)
    if role != "assistant":
        return {"role": role, "content": _text(message, blocks)}
    said = _text(message, _without(blocks, _NOT_SAID))
    return {"role": role, "content": said, **_thoughts(message, blocks)}


def chat_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Returns messages in OpenAI's format, with tool calls and their results, and thoughts as `reasoning_content`.

    Args:
        messages: A conversation. A human message may contain tool results as blocks, as in Anthropic's format.

    Raises:
        PromptError: If a message has no role in a conversation, or contains something other than text, such as an
            image.
    """
    return [read for message in messages for read in _read(message)]


def _read(message: BaseMessage) -> Iterator[dict[str, Any]]:
    role = _role(message)
    blocks = _blocks(message)
    if role == "user":
        for block in blocks:
            if isinstance(block, dict) and block.get("type") == "tool_result":
                yield {"role": "tool", "content": _text(message, _listed(block.get("content")))}
        blocks = [b for b in blocks if isinstance(b, str) or b.get("type") != "tool_result"]
        if not blocks and message.content:
            return  # nothing but results
    thoughts: dict[str, str] = {}
    if role == "assistant":
        thoughts, blocks = _thoughts(message, blocks), _without(blocks, _CALLS | _NOT_SAID)
    read: dict[str, Any] = {"role": role, "content": _text(message, blocks), **thoughts}
    if message.name:
        read["name"] = message.name
    if isinstance(message, ToolMessage):
        read["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage) and (calls := [*message.tool_calls, *message.invalid_tool_calls]):
        read["tool_calls"] = [_call(c["id"], c["name"], c["args"]) for c in calls]
    yield read


def _without(blocks: Iterable[Any], kinds: Collection[str]) -> list[Any]:
    return [block for block in blocks if isinstance(block, str) or block.get("type") not in kinds]


def _thoughts(message: BaseMessage, blocks: Iterable[Any]) -> dict[str, str]:
    """Returns the thoughts of an answer as a field of its message: from its content, or else where LangChain has them.

    Messages of LangChain's output version 1 hold the same thoughts in both places.
    """
    parts = [part for block in blocks if isinstance(block, dict) for part in _thought_parts(block)]
    said = "".join(parts) or message.additional_kwargs.get("reasoning_content")
    return {"reasoning_content": said} if isinstance(said, str) and said else {}


def _thought_parts(block: Mapping[str, Any]) -> Iterator[str]:
    """Yields the texts of a block of thoughts in the form of LangChain or Anthropic, or of OpenAI, in a summary."""
    if block.get("type") not in {"reasoning", "thinking"}:
        return
    found = block.get("reasoning") or block.get("thinking")
    if isinstance(found, str):
        yield found
        return
    for part in block.get("summary") or ():
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield part["text"]


def _call(identity: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    return {"id": identity or "", "type": "function", "function": {"name": name or "", "arguments": arguments or {}}}


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return _ROLE_ALIASES.get(message.role, message.role)
    if isinstance(message, SystemMessage) and message.additional_kwargs.get("__openai_role__") == "developer":
        return "developer"
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise PromptError(
        f"A {type(message).__name__} has no role in a conversation: give SystemMessage, HumanMessage, AIMessage, "
        "ToolMessage or ChatMessage."
    )


def _blocks(message: BaseMessage) -> list[Any]:
    return _listed(message.content)


def _listed(content: Any) -> list[Any]:
    return [content] if isinstance(content, str) else list(content or ())


def _text(message: BaseMessage, blocks: Iterable[Any]) -> str:
    texts = []
    for block in blocks:
        said = block if isinstance(block, str) else block.get(_TEXTS.get(block.get("type"), ""))
        if not isinstance(said, str):
            kind = block.get("type")
            raise PromptError(f"This {type(message).__name__} holds a block of type {kind!r}: only text can be read.")
        texts.append(said)
    return "".join(texts)
