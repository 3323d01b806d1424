"""An ensemble as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from pydantic import model_validator
from typing_extensions import Self

from deepen_core import __version__
from deepen_core.chat.messages import Message, check_messages
from deepen_core.config.constraints import can_constrain
from deepen_core.replies import ReplyForm, instructed
from deepen_integrations.chat import ChatRequest, read_form
from deepen_integrations.langchain.base import LangChainOptions
from deepen_integrations.langchain.chat_outputs import ChatChunks, chat_result
from deepen_integrations.langchain.messages import chat_messages
from deepen_integrations.langchain.structured import StructuredOutput
from deepen_integrations.langchain.tools import tool_definition

_FOR_LANGCHAIN = frozenset({"stream", "ls_structured_output_format", "strict"})
"""Keywords of a call that are no options of the engine's: whether LangChain streams, and what it writes in traces."""
_MOST_THREADS = 64


class ChatDeepen(StructuredOutput, LangChainOptions):
    r"""Several local language models with different tokenizers, chatting as one.

    Setup:
        Install `deepen-integrations[langchain,structured]`; `structured` is for tools and objects. No server and no key
        are needed; `api_key` and `max_retries` are accepted and mean nothing. Every member needs a chat template.

    Key init args, completion params:
        max_new_tokens (or max_tokens): tokens of the main member to generate at most, 256 by default.
        temperature: 0, the default, takes the most probable token; above 0 samples.
        top_k, top_p, min_p, repetition_penalty, seed: how to choose among tokens.
        stop: strings before which the answer is cut. A call's own `stop` replaces them, `[]` by none.
        timeout: seconds after which an answer ends with `finish_reason="timeout"` and what it has.
        logprobs: report the log-probability of each token, and of so many alternatives.
        on_member_error: "raise", or "drop" to go on without a member that fails.

    Key init args, ensemble params:
        models: folders in transformers format, hub ids or `MemberConfig`s; "demo" is the embedded demo.
        main: whose vocabulary is spoken, by index or name.
        weights: how much each member counts.
        fusion: "deepen", "deepen-paper" or a `FusionConfig`.
        device, dtype: for members that name none.
        max_batch_size: how many requests are decoded together at most.

    Instantiate:
        ```python
        from deepen_integrations.langchain import ChatDeepen

        chat = ChatDeepen.demo(max_tokens=32)
        # or ChatDeepen(models=["./general", "./specialist"], temperature=0.7)
        # or ChatDeepen.from_ensemble(ensemble), where ensemble = Ensemble.load(...)
        ```
        This loads nothing. The first call loads the models, once per process for equal ensemble params.

    Invoke:
        ```python
        chat.invoke("Where does Felix live?").content
        chat.invoke([("system", "Be brief."), ("human", "Where does Felix live?")], max_tokens=4)
        ```
        Each member reads the conversation by its own chat template; what a template cannot take is adapted to it.
        Options of a call replace those of the model. Users' text never turns into control tokens.

    Stream:
        ```python
        for chunk in chat.stream("Where does Felix live?"):
            print(chunk.text, end="")
        ```

    Async:
        ```python
        await chat.ainvoke("Where does Felix live?")
        async for chunk in chat.astream("Where does Felix live?"):
            print(chunk.text, end="")
        await chat.abatch(["Where does Felix live?", "What does Esther work as?"])
        ```
        No thread is held up, and a task that is cancelled ends the work. Conversations of a batch, or of several
        threads and tasks, are decoded together.

    Tool calling:
        ```python
        from typing import Literal

        def look_up(name: Literal["Anna", "Felix"]) -> str:
            '''Look up what is written about a person.'''
            return f"{name} lives in Lisbon."

        chat.bind_tools([look_up], tool_choice="any").invoke("Where does Felix live?", max_tokens=64).tool_calls
        ```
        Calls follow the tools' schemas while they are decoded, so they are valid whatever the models say; a call that
        is cut off is none. All members are told of tools in one syntax, whatever their templates know of it.

    Structured output:
        ```python
        from pydantic import BaseModel

        class Home(BaseModel):
            city: Literal["Lisbon", "Oslo"]

        chat.with_structured_output(Home).invoke("Where does Felix live?")
        ```

    JSON mode:
        ```python
        chat.with_structured_output(Home, method="json_mode").invoke("Where does Felix live? Answer as JSON.")
        ```

    Token usage:
        ```python
        chat.invoke("Where does Felix live?").usage_metadata
        # {"input_tokens": ..., "output_tokens": ..., "total_tokens": ...}
        ```
        In a stream the last chunk has it.

    Logprobs:
        ```python
        chat.invoke("Where does Felix live?", logprobs=2).response_metadata["logprobs"]["content"]
        ```

    Response metadata:
        ```python
        chat.invoke("Where does Felix live?").response_metadata
        # {"finish_reason": "stop", "model_name": "atlas-gpt2+almanac-llama", "model_provider": "deepen", ...}
        ```
    """

    streaming: bool = False
    """Whether `invoke` streams inside, so that callbacks hear of each piece even where nothing asks LangChain to."""

    @model_validator(mode="after")
    def _set_deepen_version(self) -> Self:
        self._add_version("deepen", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "deepen-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return self.identifying_params()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=self.told_stop(stop), **kwargs)

    def _resolve_model_profile(self) -> ModelProfile:
        """What is known before anything is loaded."""
        facts, constrains = self.facts, can_constrain()
        profile = ModelProfile(
            name=self.model_name,
            max_output_tokens=self.max_new_tokens,
            text_inputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            text_outputs=True,
            image_outputs=False,
            audio_outputs=False,
            video_outputs=False,
            tool_calling=constrains,
            tool_choice=constrains,
            tool_call_streaming=constrains,
            structured_output=constrains,
        )
        if facts.context_window is not None:
            profile["max_input_tokens"] = facts.context_window
        return profile

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A model that may call tools.

        Args:
            tools: Tools, functions, pydantic classes, TypedDicts, JSON schemas with a title, or definitions in
                OpenAI's form.
            tool_choice: None or "auto" lets the models decide; "any", "required" or True has them call one; a name or
                a mapping with a name has them call that one; "none" keeps them from it.
            parallel_tool_calls: Whether an answer may hold several calls. If not given: unless one tool is named.
            strict: Taken as other models take it. Arguments follow the schema anyway.
            kwargs: Options of each call.

        Raises:
            SamplingError: If there is no such tool, if a schema of one cannot be followed, or for an unknown option or
                value.
        """
        del strict
        bound: dict[str, Any] = {"tools": [tool_definition(tool) for tool in tools], **kwargs}
        given = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        bound |= {name: value for name, value in given.items() if value is not None}
        self._checked((), bound)
        return self.bind(**bound)

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of a text by the main member's tokenizer, without BOS; `get_num_tokens` counts them."""
        return self.main_ids(text, self.custom_get_token_ids)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """How many of the main member's tokens these messages are as a prompt, rendered by its chat template.

        Args:
            messages: The conversation.
            tools: Counted as the members are told of them.

        Raises:
            PromptError: If the messages hold what no text model can read.
            ChatTemplateError: If main has no chat template.
        """
        form = ReplyForm.from_openai([tool_definition(tool) for tool in tools or ()])
        return self.ensemble.count_tokens(instructed(chat_messages(messages), form))

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As `BaseChatModel.batch`, which runs each conversation in a thread: there are enough to fill the engine."""
        configs = get_config_list(config, len(inputs))
        if configs and configs[0].get("max_concurrency") is None:
            threads = min(len(inputs), max(_MOST_THREADS, self.max_batch_size))
            configs[0] = {**configs[0], "max_concurrency": threads}
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002  LangChain tells of tokens itself
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        ensemble = self.ensemble
        answer = ensemble.generate(request.prompt(), request.params(ensemble.thinking))
        return chat_result(answer, request.parser(ensemble.thinking), self.model_name, self.get_num_tokens)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002  as above
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        ensemble = await self.aensemble()
        answer = await ensemble.agenerate(request.prompt(), request.params(ensemble.thinking))
        return chat_result(answer, request.parser(ensemble.thinking), self.model_name, self.get_num_tokens)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        ensemble = self.ensemble
        chunks = ChatChunks(request.parser(ensemble.thinking), self.model_name, self.get_num_tokens)
        with closing(ensemble.stream(request.prompt(), request.params(ensemble.thinking))) as pieces:
            for piece in pieces:
                for chunk in chunks.chunks_for(piece):
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        request = self._request(messages, stop, kwargs)
        ensemble = await self.aensemble()
        chunks = ChatChunks(request.parser(ensemble.thinking), self.model_name, self.get_num_tokens)
        async with aclosing(ensemble.astream(request.prompt(), request.params(ensemble.thinking))) as pieces:
            async for piece in pieces:
                for chunk in chunks.chunks_for(piece):
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def _request(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> ChatRequest:
        return self._checked(check_messages(chat_messages(messages)), {"stop": stop, **options})

    def _checked(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ChatRequest:
        """What is asked, checked before anything is loaded."""
        given = {name: value for name, value in options.items() if name not in _FOR_LANGCHAIN}
        form = read_form(given)
        request = ChatRequest(messages, form, self.sampling(given))
        request.check()
        return request
