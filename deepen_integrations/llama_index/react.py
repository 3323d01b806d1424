"""What agents ask of a model that calls tools by writing so (ReAct)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.tools import BaseTool
from typing_extensions import Self

from deepen_integrations.adapter import DeepenAdapter

_OBSERVATION = "\nObservation:"
"""What follows an action in ReAct is the tool's to say; models go on and make it up."""


class ReActModel(CustomLLM, DeepenAdapter):
    """A model for LlamaIndex's `ReActAgent`."""

    def for_react(self) -> Self:
        """A copy for `ReActAgent`, which gives no stop strings itself: it ends where a tool's observation would begin.

        The copy shares the ensemble.
        """
        return self if _OBSERVATION in self.stop else self.with_options(stop=[*self.stop, _OBSERVATION])

    def predict_and_call(
        self,
        tools: list[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> AgentChatResponse:
        """Has the model choose a tool in one step of ReAct, and calls it.

        Args:
            tools: To choose from.
            user_msg: What is asked.
            chat_history: What was said before.
            verbose: Print what is called.
            kwargs: `react_chat_formatter` and `output_parser`, if not the usual ones.

        Returns:
            What the tools said; what went wrong, if something did.
        """
        model = self.for_react()
        return super(ReActModel, model).predict_and_call(tools, user_msg, chat_history, verbose, **_usual(kwargs))

    async def apredict_and_call(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> AgentChatResponse:
        """As `predict_and_call`, for an event loop."""
        model = self.for_react()
        return await super(ReActModel, model).apredict_and_call(
            list(tools), user_msg, chat_history, verbose, **_usual(kwargs)
        )


def _usual(options: dict[str, Any]) -> dict[str, Any]:
    """The options with what LlamaIndex 0.14.25 takes for granted and does not put in."""
    return {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser(), **options}
