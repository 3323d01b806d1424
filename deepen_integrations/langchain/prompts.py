"""Conversations on their way through LangChain's text models, which pass strings only."""

from __future__ import annotations

import json
from collections.abc import Sequence

from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from typing_extensions import Self

from deepen_integrations.langchain.messages import plain_messages


class Conversation(str):
    """A conversation as a string: JSON, so LangChain's cache tells any two of them apart.

    Attributes:
        messages: Role and content of each message.
        joined: The text that LangChain writes for models without messages, such as `Human: hi`.
    """

    __slots__ = ("joined", "messages")

    messages: list[dict[str, str]]
    joined: str

    @classmethod
    def from_messages(cls, messages: Sequence[BaseMessage]) -> Self:
        """Makes the string.

        Raises:
            PromptError: If a message contains anything but text.
        """
        plain = plain_messages(messages)
        conversation = cls(json.dumps(plain, ensure_ascii=False))
        conversation.messages = plain
        conversation.joined = get_buffer_string(messages)
        return conversation


class ConversationValue(ChatPromptValue):
    """Messages that remain messages where LangChain asks for a string."""

    def to_string(self) -> str:
        """Returns a `Conversation`."""
        return Conversation.from_messages(self.messages)


def keep_messages(value: PromptValue) -> PromptValue:
    """Keeps the messages of a prompt, if it has any, where LangChain would join them to one string.

    Raises:
        PromptError: If a message contains anything but text.
    """
    if not isinstance(value, ChatPromptValue):
        return value
    plain_messages(value.messages)  # raises before any callback
    return ConversationValue(messages=value.messages)
