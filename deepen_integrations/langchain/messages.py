"""LangChain's messages as chat templates take them."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from deepen_core.errors import PromptError

_ROLES: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
}
_SPOKEN = {"human": "user", "ai": "assistant"}
"""LangChain's own names of roles, which a `ChatMessage` may carry."""


def plain_messages(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """Messages as role and content.

    Args:
        messages: A conversation that holds text only.

    Raises:
        PromptError: If a message is of another kind, holds anything but text, or calls tools.
    """
    return [{"role": _role(message), "content": _text(message)} for message in messages]


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return _SPOKEN.get(message.role, message.role)
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        raise PromptError("An AIMessage calls tools, which a text-completion model cannot read: use a chat model.")
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise PromptError(
        f"A {type(message).__name__} has no role in a conversation: give SystemMessage, HumanMessage, AIMessage, "
        "ToolMessage or ChatMessage."
    )


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block["text"]))
        else:
            kind = block.get("type")
            raise PromptError(f"A {type(message).__name__} holds a block of type {kind!r}: only text can be read.")
    return "".join(texts)
