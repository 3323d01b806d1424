"""What a prompt really is, on its way through LangChain, whose text models take strings only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.utils.function_calling import convert_to_openai_tool
from typing_extensions import Self

from deepen_integrations.langchain.base import LangChainOptions
from deepen_integrations.langchain.messages import plain_messages

if TYPE_CHECKING:
    from deepen_core import Ensemble


class Conversation(str):
    """A conversation as a string: JSON, so that LangChain's cache takes no two of them for the same.

    Attributes:
        messages: Role and content of each message.
        joined: All of it as LangChain writes it for models that take no messages, such as `Human: hi`.
    """

    __slots__ = ("joined", "messages")

    messages: list[dict[str, str]]
    joined: str

    @classmethod
    def from_messages(cls, messages: Sequence[BaseMessage]) -> Self:
        """The conversation of these messages.

        Raises:
            PromptError: If they hold anything but text.
        """
        plain = plain_messages(messages)
        conversation = cls(json.dumps(plain, ensure_ascii=False))
        conversation.messages = plain
        conversation.joined = get_buffer_string(messages)
        return conversation


class ConversationValue(ChatPromptValue):
    """Messages that stay messages where LangChain asks for a string."""

    def to_string(self) -> str:
        """A `Conversation`."""
        return Conversation.from_messages(self.messages)


class PromptReader(BaseLLM, LangChainOptions):
    """How a model reads strings and conversations, and counts their tokens."""

    apply_chat_template: bool | Literal["auto"] = "auto"
    """Whether messages are rendered by each member's own chat template. "auto": if all members have one. If not, they
    are joined to one text as LangChain does for other models, `Human: ...`. Strings are never rendered."""

    def generate_prompt(
        self,
        prompts: list[PromptValue],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `BaseLLM.generate_prompt`; messages are kept as in `invoke`."""
        return super().generate_prompt([self._convert_input(p) for p in prompts], stop, callbacks, **kwargs)

    async def agenerate_prompt(
        self,
        prompts: list[PromptValue],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `BaseLLM.agenerate_prompt`; messages are kept as in `ainvoke`."""
        return await super().agenerate_prompt([self._convert_input(p) for p in prompts], stop, callbacks, **kwargs)

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        value = super()._convert_input(model_input)
        if self.apply_chat_template is False or not isinstance(value, ChatPromptValue):
            return value
        plain_messages(value.messages)  # refuses what cannot be read, before any callback
        return ConversationValue(messages=value.messages)

    def _read(self, prompt: str, ensemble: Ensemble) -> str | list[dict[str, str]]:
        """A prompt as the engine takes it."""
        if not isinstance(prompt, Conversation):
            return prompt
        return prompt.messages if self._renders(ensemble) else prompt.joined

    def _renders(self, ensemble: Ensemble) -> bool:
        return ensemble.has_chat_template if self.apply_chat_template == "auto" else self.apply_chat_template

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of a text by the main member's tokenizer, without BOS; `get_num_tokens` counts them."""
        return self.main_ids(text, self.custom_get_token_ids)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """How many of the main member's tokens these messages are as a prompt.

        Args:
            messages: The conversation, rendered by main's chat template where prompts are.
            tools: Counted as their JSON schemas. They are no part of this model's prompts.

        Raises:
            PromptError: If the messages hold anything but text.
        """
        ensemble = self.ensemble
        schemas = [json.dumps(convert_to_openai_tool(tool), ensure_ascii=False) for tool in tools or ()]
        described = sum(map(self.get_num_tokens, schemas))
        if self.custom_get_token_ids is None and self._renders(ensemble):
            return described + ensemble.count_tokens(plain_messages(messages))
        return described + self.get_num_tokens(get_buffer_string(messages))
