"""Converts LlamaIndex's messages to the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ThinkingBlock, ToolCallBlock

from deepen_core.chat.messages import Message
from deepen_core.errors import PromptError

_ROLES = {
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}
"""LlamaIndex's roles that have another name in chat templates."""


def chat_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Returns messages in OpenAI's format, with tool calls and their results, and thoughts as `reasoning_content`.

    Raises:
        PromptError: If a message contains something other than text, such as an image.
    """
    return [_read(message) for message in messages]


def _read(message: ChatMessage) -> dict[str, Any]:
    read: dict[str, Any] = {"role": _ROLES.get(message.role, message.role.value), "content": message.content or ""}
    thoughts = "".join(block.content or "" for block in message.blocks if isinstance(block, ThinkingBlock))
    if thoughts:
        read["reasoning_content"] = thoughts
    calls = [_call(block) for block in message.blocks if isinstance(block, ToolCallBlock)]
    if calls:
        read["tool_calls"] = calls
    for block in message.blocks:
        if not isinstance(block, (TextBlock, ThinkingBlock, ToolCallBlock)):
            kind = type(block).__name__
            raise PromptError(f"A {message.role.value} message holds a {kind}: only text can be read.")
    return read


def _call(block: ToolCallBlock) -> dict[str, Any]:
    function = {"name": block.tool_name, "arguments": block.tool_kwargs}
    return {"id": block.tool_call_id or "", "type": "function", "function": function}


def text_messages(messages: Sequence[Message]) -> list[ChatMessage]:
    """Returns messages of text only, for LlamaIndex's functions that join a conversation to one text."""
    named = {"developer": "system"}
    return [
        ChatMessage(role=named.get(m["role"], m["role"]), content="".join(_strings(m["content"]))) for m in messages
    ]


def _strings(content: Any) -> Sequence[str]:
    return [content] if isinstance(content, str) else content
