"""LlamaIndex's messages as the engine takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ThinkingBlock, ToolCallBlock

from deepen_core.chat.messages import Message
from deepen_core.errors import PromptError

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}
"""Roles of LlamaIndex that chat templates call otherwise."""


def chat_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Messages in OpenAI's form, with calls of tools and their results. What was thought is left out.

    Raises:
        PromptError: If a message holds what no text model can read, such as an image.
    """
    return [_read(message) for message in messages]


def _read(message: ChatMessage) -> dict[str, Any]:
    read: dict[str, Any] = {"role": _ROLES.get(message.role, message.role.value), "content": message.content or ""}
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
    """The same with nothing but text, for LlamaIndex's functions that make one text of a conversation."""
    return [ChatMessage(role=m["role"], content="".join(_strings(m["content"]))) for m in messages]


def _strings(content: Any) -> Sequence[str]:
    return [content] if isinstance(content, str) else content
