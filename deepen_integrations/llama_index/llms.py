"""An ensemble as a LlamaIndex model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import default_completion_to_prompt
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.core.types import Model, PydanticProgramMode
from pydantic import Field
from typing_extensions import Self

from deepen_core.chat.messages import check_messages
from deepen_core.config import SamplingParams
from deepen_core.config.constraints import can_constrain
from deepen_core.replies import ReplyForm
from deepen_integrations.adapter import DeepenAdapter
from deepen_integrations.chat import ChatRequest, PreparedChat, beside_the_loop
from deepen_integrations.llama_index.callbacks import aobserved, observed
from deepen_integrations.llama_index.held_answers import HeldMessages, HeldText, asked_schema, held_options
from deepen_integrations.llama_index.messages import chat_messages, text_messages
from deepen_integrations.llama_index.react import react_constraint, react_options, react_stop
from deepen_integrations.llama_index.responses import ChatResponses, CompletionResponses
from deepen_integrations.llama_index.structured import StructuredCall

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse

    from deepen_core import Ensemble
    from deepen_core.chat.messages import Message, Prompt


class DeepenLLM(CustomLLM, DeepenAdapter):
    r"""Several local language models with different tokenizers that answer as one.

    Install `deepen-integrations[llama-index]`. There is no server and no key.

    Options are fields. A call may override the sampling options by keyword; `max_tokens` is another name for
    `max_new_tokens`.

    With the extra `structured`, `structured_predict`, `as_structured_llm` and the `output_cls` of query engines always
    return valid objects. For a `ReActAgent`, pass `llm.for_react()`. `configure_settings(llm)` makes the model
    LlamaIndex's default.

    Construction loads nothing. The first call loads the models, once per process for equal load options (the fields
    of `LoadOptions`: `models`, `main`, `weights`, `fusion` and so on).

    Each member reads conversations through its own chat template. If a member has none, or if `messages_to_prompt` is
    given, all members read the same text.

    Examples:
        ```python
        from deepen_integrations.llama_index import DeepenLLM

        llm = DeepenLLM.demo(max_new_tokens=16)
        # or DeepenLLM(models=["./general", "./specialist"], temperature=0.7)
        # or DeepenLLM.from_ensemble(ensemble), where ensemble = Ensemble.load(...)

        print(llm.complete("Question: Where does Mira live?\nAnswer:").text)
        for response in llm.stream_complete("Mira lives in", stop=["."]):
            print(response.delta, end="")

        index.as_query_engine(llm=llm).query("Where does Mira live?")
        ```
    """

    context_window: int | None = Field(default=None, ge=1)
    """Tokens that a prompt's text and its answer may have together; LlamaIndex fills prompts up to it.

    By default the number of main's tokens that fit every member, minus those that chat templates add, as measured with
    the members' tokenizers.
    """

    @classmethod
    def class_name(cls) -> str:
        """The name in serialized form."""
        return "DeepenLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans prompts with, the same before and after the models are loaded.

        Loads no weights, but reads the members' tokenizers.

        Raises:
            ClosedError: After `close`.
            DeepenError: If a member's files cannot be found or used.
        """
        budget = self.budget
        window = self.context_window or budget.planning_window
        return LLMMetadata(
            context_window=window,
            # An answer ends where the window is full, so plans reserve at most half of the window for it.
            num_output=min(self.max_tokens, window // 2),
            is_chat_model=budget.has_chat_template,
            model_name=self.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        """What events and traces tell of the model; the metadata only once they are known, so that no call waits."""
        known = self.metadata.model_dump() if self._held().is_measured else {"model_name": self.model_name}
        own = {"temperature": self.temperature, "max_new_tokens": self.max_tokens}
        return {"class_name": self.class_name(), **known, **own}

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answers a prompt.

        Args:
            prompt: The text.
            formatted: Whether the text is ready for the models. If not, and all members have chat templates, it
                becomes a user message; with `control_tokens=True` it is taken as it is.
            kwargs: Options of this call.

        Raises:
            DeepenError: If an option is wrong or the engine fails.
        """
        params = self.sampling(self._held_options(prompt, kwargs))
        ensemble = self.load_ensemble(within=params)
        responses = CompletionResponses(self.model_name)
        return responses.whole(ensemble.generate(self._read_prompt(prompt, formatted, params), params))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Like `complete`, without blocking the event loop. Cancelling the task ends the work."""
        params = self.sampling(self._held_options(prompt, kwargs))
        ensemble = await self.aensemble(within=params)
        responses = CompletionResponses(self.model_name)
        return responses.whole(await ensemble.agenerate(self._read_prompt(prompt, formatted, params), params))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answers a prompt piece by piece. Arguments and errors are those of `complete`."""
        params = self.sampling(self._held_options(prompt, kwargs))
        ensemble = self.load_ensemble(within=params)
        responses = CompletionResponses(self.model_name)
        pieces = responses.each(ensemble.stream(self._read_prompt(prompt, formatted, params), params))
        return observed(llm_completion_callback(), self, prompt, pieces, kwargs)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Like `stream_complete`, for an event loop."""
        params = self.sampling(self._held_options(prompt, kwargs))
        ensemble = await self.aensemble(within=params)
        responses = CompletionResponses(self.model_name)
        pieces = responses.aeach(ensemble.astream(self._read_prompt(prompt, formatted, params), params))
        return await aobserved(llm_completion_callback(), self, prompt, pieces, kwargs)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers a conversation.

        Args:
            messages: The conversation, of text only.
            kwargs: Options of this call.

        Raises:
            DeepenError: If an option is wrong or the engine fails.
        """
        request = self._request(messages, kwargs)
        ensemble = self.load_ensemble(within=request.sampling)
        call = self._prepared(messages, request, ensemble)
        return self._responses(call, ensemble).whole(ensemble.generate(call.prompt, call.params))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Like `chat`, without blocking the event loop. Cancelling the task ends the work."""
        beside = beside_the_loop([message.content for message in messages], kwargs)
        request = await beside(partial(self._request, messages, kwargs))
        ensemble = await self.aensemble(within=request.sampling)
        call = await beside(partial(self._prepared, messages, request, ensemble))
        return self._responses(call, ensemble).whole(await ensemble.agenerate(call.prompt, call.params))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answers a conversation piece by piece. Arguments and errors are those of `chat`."""
        request = self._request(messages, kwargs)
        ensemble = self.load_ensemble(within=request.sampling)
        call = self._prepared(messages, request, ensemble)
        pieces = self._responses(call, ensemble).each(ensemble.stream(call.prompt, call.params))
        return observed(llm_chat_callback(), self, messages, pieces, kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Like `stream_chat`, for an event loop."""
        beside = beside_the_loop([message.content for message in messages], kwargs)
        request = await beside(partial(self._request, messages, kwargs))
        ensemble = await self.aensemble(within=request.sampling)
        call = await beside(partial(self._prepared, messages, request, ensemble))
        pieces = self._responses(call, ensemble).aeach(ensemble.astream(call.prompt, call.params))
        return await aobserved(llm_chat_callback(), self, messages, pieces, kwargs)

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Answers with an object whose JSON schema the answer follows.

        With a `pydantic_program_mode` other than the default, LlamaIndex's own implementation runs, as in the three
        variants of this method.

        Args:
            output_cls: The object's pydantic class. Its schema is also part of the prompt.
            prompt: The request.
            llm_kwargs: Options of this call.
            prompt_args: Values of the prompt's variables.

        Raises:
            SamplingError: If decoding cannot follow a part of the schema.
            StructuredAnswerError: If the answer was cut off, or the class rejects it for reasons beyond its schema.
        """
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            found: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return found
        return StructuredCall(self, output_cls, prompt, llm_kwargs, prompt_args).predict()

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Like `structured_predict`, for an event loop."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            found: Model = await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return found
        return await StructuredCall(self, output_cls, prompt, llm_kwargs, prompt_args).apredict()

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """Returns the stream behind LlamaIndex's `stream_structured_predict`."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        return StructuredCall(self, output_cls, prompt, llm_kwargs, prompt_args).stream()

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """Returns the stream behind LlamaIndex's `astream_structured_predict`."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        return await StructuredCall(self, output_cls, prompt, llm_kwargs, prompt_args).astream()

    def for_react(self, tools: Sequence[BaseTool] = (), *, can_handoff_to: Sequence[str] = ()) -> Self:
        """Returns a copy for `ReActAgent`, which sets no stop strings: it stops where a tool's observation would begin.

        With tools, answers are also held to the form that the agent reads: a thought, and then the name of a tool and
        an input that is valid for it, or the answer. The copy shares the ensemble.

        Args:
            tools: All tools of the agent; needs the extra `structured`. A constraint of the model takes precedence.
            can_handoff_to: Names of the agents that it may hand off to in an `AgentWorkflow`.

        Raises:
            SamplingError: If decoding cannot follow a tool's schema, or if a name holds a blank or a bracket.
        """
        stop = react_stop(self.stop)
        options: dict[str, Any] = {} if stop == [*self.stop] else {"stop": stop}
        options |= react_constraint(tools, can_handoff_to, self.sampling({}))
        return self.with_options(**options) if options else self

    def predict_and_call(
        self,
        tools: list[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> AgentChatResponse:
        """Lets the model choose a tool in one step of ReAct, and calls the tool.

        Args:
            tools: The tools to choose from.
            user_msg: The request.
            chat_history: The conversation before it.
            verbose: Print the call.
            kwargs: `react_chat_formatter` and `output_parser`, if not the defaults.

        Returns:
            The tools' results, or the error in their place.
        """
        model, options = self._for_step(tools), react_options(kwargs)
        return super(DeepenLLM, model).predict_and_call(tools, user_msg, chat_history, verbose, **options)

    async def apredict_and_call(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> AgentChatResponse:
        """Like `predict_and_call`, for an event loop."""
        model, options = self._for_step(tools), react_options(kwargs)
        return await super(DeepenLLM, model).apredict_and_call(list(tools), user_msg, chat_history, verbose, **options)

    def _for_step(self, tools: Sequence[BaseTool]) -> Self:
        return self.for_react(tools if can_constrain() else ())

    def _request(self, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> ChatRequest:
        """Makes the request and checks it before anything is loaded."""
        sampling = self.sampling(self._held_options(messages, options))
        return ChatRequest(check_messages(chat_messages(messages)), ReplyForm(), sampling)

    # LlamaIndex's hooks for prompts: the only places that see which parser will read the answer.

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        messages = super()._get_messages(prompt, **prompt_args)
        return HeldMessages(messages, held_options(self, prompt, prompt_args))

    def _get_prompt(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        return HeldText(super()._get_prompt(prompt, **prompt_args), held_options(self, prompt, prompt_args))

    def _extend_messages(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        # Programs call this on a prompt that a parser has formatted, whose instructions are its only trace.
        asked = (asked_schema(message.content or "") for message in messages)
        schema = next((schema for schema in asked if schema is not None), None)
        return HeldMessages(super()._extend_messages(messages), {} if schema is None else {"json_schema": schema})

    def _held_options(self, asked: str | Sequence[ChatMessage], options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a call's options with the constraint of what will read the answer; the caller's takes precedence."""
        held = getattr(asked, "held", {})
        if isinstance(asked, str) and not isinstance(asked, HeldText):
            schema = asked_schema(asked)
            held = {} if schema is None else {"json_schema": schema}
        return {**held, **options} if held and self.sampling(options).constraint is None else options

    def _read_prompt(self, prompt: str, formatted: bool, params: SamplingParams) -> Prompt:
        usual = self.completion_to_prompt is default_completion_to_prompt
        if formatted or (usual and params.control_tokens):
            return prompt
        if usual and self.has_chat_template:
            return chat_messages(self._extend_messages([ChatMessage(role=MessageRole.USER, content=prompt)]))
        wrap = self.completion_to_prompt or default_completion_to_prompt
        return self._extend_prompt(wrap(prompt))

    def _prepared(self, messages: Sequence[ChatMessage], request: ChatRequest, ensemble: Ensemble) -> PreparedChat:
        """Prepares the request; its conversation becomes one text if not all members have chat templates."""
        render = self.messages_to_prompt or messages_to_prompt
        if ensemble.has_chat_template and render is messages_to_prompt:
            return request.prepare(ensemble)

        def join(conversation: list[Message]) -> str:
            return render(messages if conversation == request.messages else text_messages(conversation))

        return request.prepare(ensemble, join)

    def _responses(self, call: PreparedChat, ensemble: Ensemble) -> ChatResponses:
        return ChatResponses(self.model_name, call.parser, ensemble.count_tokens)
