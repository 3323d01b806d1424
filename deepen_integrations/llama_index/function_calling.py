"""An ensemble as a LlamaIndex model that calls tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, MessageRole, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool

from deepen_core.chat.messages import check_messages
from deepen_core.config.constraints import can_constrain
from deepen_core.errors import NoToolCallError
from deepen_integrations.chat import ChatRequest
from deepen_integrations.llama_index.llms import DeepenLLM
from deepen_integrations.llama_index.messages import chat_messages


class DeepenToolLLM(DeepenLLM, FunctionCallingLLM):
    """Several local language models with different tokenizers that answer as one and call tools.

    Does everything that `DeepenLLM` does, and works with `FunctionAgent` and `AgentWorkflow`. Install the extra
    `structured`: decoding follows the tools' schemas, so every call is valid. An answer that
    ends inside a call, or breaks what decoding cannot follow of a schema, raises `NoToolCallError`.

    The four chat methods accept `tools`, `tool_choice`, `parallel_tool_calls` and `response_format` in OpenAI's format,
    and `strict`, as options of a call.

    Examples:
        ```python
        from llama_index.core.agent.workflow import FunctionAgent
        from deepen_integrations.llama_index import DeepenToolLLM

        llm = DeepenToolLLM(models=["./general", "./specialist"])
        agent = FunctionAgent(tools=[multiply], llm=llm)
        print(await agent.run("What is 12 times 13?"))
        ```
    """

    @classmethod
    def class_name(cls) -> str:
        """The name in serialized form."""
        return "DeepenToolLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """Like that of `DeepenLLM`; function calling requires the extra `structured`."""
        return super().metadata.model_copy(update={"is_function_calling_model": can_constrain()})

    def _request(self, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> ChatRequest:
        if not any(options.get(name) for name in ("tools", "response_format")):
            options = self._held_options(messages, options)
        given = {"strict": self.strict, **options}
        return ChatRequest.from_options(check_messages(chat_messages(messages)), given, self.sampling)

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: ARG002  prints nothing
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the arguments of the chat methods for LlamaIndex's `..._with_tools` variants."""
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        messages = [*(chat_history or ()), *([user_msg] if user_msg is not None else ())]
        return {
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice or ("required" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Returns the tool calls of a response.

        Args:
            response: The response of a chat method.
            error_on_no_tool_call: Whether a response without a call is an error.
            kwargs: Ignored.

        Raises:
            NoToolCallError: If there is no call and that is an error.
        """
        del kwargs
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise NoToolCallError.from_answer(
                response.message.content or "", (response.raw or {}).get("finish_reason", "stop")
            )
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=call.tool_kwargs if isinstance(call.tool_kwargs, dict) else {},
            )
            for call in calls
        ]

    # Not DeepenLLM's step of ReAct, which is for models without function calling.
    predict_and_call = FunctionCallingLLM.predict_and_call
    apredict_and_call = FunctionCallingLLM.apredict_and_call
