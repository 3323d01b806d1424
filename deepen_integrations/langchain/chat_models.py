"""An ensemble as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Any, ClassVar, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import get_config_list
from langchain_core.runnables.utils import AnyConfigurableField
from langchain_core.tools import BaseTool
from pydantic import model_validator
from typing_extensions import Self

from deepen_core import __version__
from deepen_core.chat.messages import Message, check_messages
from deepen_core.replies import ReplyForm, instructed
from deepen_integrations.chat import ChatRequest, beside_the_loop
from deepen_integrations.langchain.base import LangChainAdapter, SerializableModel
from deepen_integrations.langchain.chat_outputs import ChatChunks, chat_result
from deepen_integrations.langchain.errors import langchain_errors
from deepen_integrations.langchain.messages import chat_messages
from deepen_integrations.langchain.outputs import total_usage
from deepen_integrations.langchain.profiles import model_profile
from deepen_integrations.langchain.structured import Method, structured_output
from deepen_integrations.langchain.tools import tool_definition

_NOT_SAMPLING = frozenset({"n", "stream", "ls_structured_output_format"})
"""Keywords of a call that are not engine options: the number of answers, whether LangChain streams, and what it writes
to traces."""
_MAX_THREADS = 64


class ChatDeepen(SerializableModel, BaseChatModel, LangChainAdapter):
    r"""Several local language models with different tokenizers that chat as one.

    Setup:
        Install `deepen-integrations[langchain,structured]`; `structured` is for tools and objects. There is no server
        and no key; options that are only for servers have no effect. Every member needs a chat template.

    Key init args, completion params:
        max_new_tokens (or max_tokens): maximum number of the main model's tokens to generate; by default 256,
            or 4096 where main's chat template may let it think first.
        temperature: 0, the default, takes the most probable token; above 0 samples.
        top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty, seed: how tokens are chosen.
        stop: strings at which the answer is cut. A call's own `stop` replaces them; `[]` removes them.
        reasoning: True, False or an effort such as "low": whether the model thinks first.
        timeout: seconds until the partial answer is returned, with `finish_reason="timeout"`.
        logprobs: report each token's log-probability, and this many alternatives.
        on_member_error: "raise", or "drop" to continue without a member that fails.

    Key init args, ensemble params:
        models: folders in transformers format, hub ids or `MemberConfig`s; "demo" is the embedded demo.
        main: the model whose tokens are generated, by index or name.
        weights: each member's share in the fusion, or a policy such as "static" or "context".
        fusion: a name in `deepen_core.config.PRESETS`, or the options of a strategy, such as `FusionConfig`.
        device, dtype: for members without their own.
        max_batch_size: maximum number of requests decoded together.

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
        Each member reads the conversation through its own chat template; messages that a template rejects are adapted
        to it. Options of a call override those of the model. Users' text never becomes control tokens.

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
        No thread waits, and cancelling a task ends the work. The conversations of a batch, or of several threads and
        tasks, are decoded together.

    Tool calling:
        ```python
        from typing import Literal

        def look_up(name: Literal["Anna", "Felix"]) -> str:
            '''Look up what is written about a person.'''
            return f"{name} lives in Lisbon."

        chat.bind_tools([look_up], tool_choice="any").invoke("Where does Felix live?", max_tokens=64).tool_calls
        ```
        Decoding follows the tools' schemas, so every call is valid. What there is of a call that is cut off is one of
        the message's `invalid_tool_calls`. All members see the tools in one syntax, whether or not their templates
        support tools.

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
        In a stream, the last chunk has it.

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

    only_chats: ClassVar[bool] = True
    streaming: bool = False
    """Whether `invoke` streams internally, so that callbacks receive each piece even if nothing else asks for it."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may contain several calls; by default unless one tool is named. A call's own comes before it.
    Set it to False for small models, which often make more calls than they need."""

    @model_validator(mode="after")
    def _set_deepen_version(self) -> Self:
        if hasattr(self, "_add_version"):  # since langchain-core 1.4.6
            self._add_version("deepen", __version__)
        return self

    @model_validator(mode="after")
    def _can_chat(self) -> Self:
        """Refuses members that certainly have no chat template; loading finds the others."""
        if missing := self.facts.without_template:
            from deepen_core.chat.prompt_encoder import no_template  # noqa: PLC0415 (imports transformers)

            with langchain_errors():
                raise no_template(missing)
        return self

    @property
    def _serialized(self) -> dict[str, Any]:  # BaseChatModel caches it, but options change
        return cast("dict[str, Any]", dumpd(self))

    @property
    def _llm_type(self) -> str:
        return "deepen-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return self.identifying_params()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=self.stop_strings(stop), **kwargs)

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        """Adds the token counts of several conversations; those answered by LangChain's cache have none."""
        usages = [[output["token_usage"]] for output in llm_outputs if output]
        return {"token_usage": total_usage(usages), "model_name": self.model_name}

    def _resolve_model_profile(self) -> ModelProfile:
        return model_profile(self)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Returns a model that can call tools.

        Args:
            tools: Tools, functions, pydantic classes, TypedDicts, JSON schemas with a title, or definitions in
                OpenAI's format.
            tool_choice: None or "auto" lets the models decide; "any", "required" or True requires a call; a name or a
                mapping with a name requires a call of that tool; "none" forbids calls.
            parallel_tool_calls: Whether an answer may contain several calls; see the field of this name, which is the
                default.
            strict: Whether to refuse schemas that decoding cannot follow in full; see the field of this name, which
                is the default.
            kwargs: Options of each call.

        Raises:
            SamplingError: If there is no such tool, if decoding cannot follow a tool's schema, or for an unknown
                option or value.
        """
        bound: dict[str, Any] = {"tools": [tool_definition(tool) for tool in tools], **kwargs}
        given = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls, "strict": strict}
        bound |= {name: value for name, value in given.items() if value is not None}
        self._checked((), bound)
        return self.bind(**bound)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Returns a model that answers with objects.

        Args:
            schema: A pydantic class, a TypedDict, a JSON schema, or a tool definition in OpenAI's format. Pydantic
                classes yield their instances, all others dicts. An `Enum` whose values are texts yields a member: one
                of them is the whole answer, whatever the method. Optional for "json_mode".
            include_raw: Return a dict of `raw` (the message), `parsed` and `parsing_error` (an error or None), and
                never raise a parsing error.
            method: "json_schema": the answer follows the schema; "function_calling": a call of one tool with the
                schema's name; "json_mode": any JSON object, or one that follows the schema if there is one.
            strict: As for `bind_tools`.
            kwargs: Options of each call.

        Raises:
            SamplingError: For an unknown method or option, a missing schema, or one that decoding cannot follow.
        """
        options = kwargs if strict is None else {**kwargs, "strict": strict}
        return structured_output(self.bind_tools, schema, method, include_raw=include_raw, options=options)

    def configurable_fields(
        self, **kwargs: AnyConfigurableField
    ) -> RunnableSerializable[LanguageModelInput, AIMessage]:
        """Like `RunnableSerializable.configurable_fields`; `max_tokens` is a name of `max_new_tokens`."""
        return super().configurable_fields(**self.own_names(kwargs))

    def get_token_ids(self, text: str) -> list[int]:
        """Returns the ids of a text by the main member's tokenizer, without BOS."""
        return self.token_ids(text, self.custom_get_token_ids)

    def get_num_tokens(self, text: str) -> int:
        """Counts a text, without BOS, by the member whose window it fills most, in the scale of main's window.

        So it may be more than the length of `get_token_ids`. Loads no weights.
        """
        return self.token_count(text, self.custom_get_token_ids)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Counts these messages as a prompt, by the member whose window they fill most, in the scale of main's window.

        Each member renders them with its own chat template. What counts up to `profile["max_input_tokens"]` fits every
        member. Loads no weights.

        Args:
            messages: The conversation.
            tools: Counted as they appear in the prompt.

        Raises:
            PromptError: If a message contains something that a text model cannot read.
            ChatTemplateError: If a member has no chat template.
        """
        form = ReplyForm.from_openai([tool_definition(tool) for tool in tools or ()])
        return self.token_count(instructed(chat_messages(messages), form), None)

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Like `BaseChatModel.invoke`; decodes one answer, whatever `n` is."""
        return super().invoke(input, config, stop=stop, **self.one_answer_options(kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Like `BaseChatModel.ainvoke`; decodes one answer, whatever `n` is."""
        return await super().ainvoke(input, config, stop=stop, **self.one_answer_options(kwargs))

    def _should_stream(self, **options: Any) -> bool:
        """Whether LangChain streams an answer internally; `generate` does not if it is asked for several."""
        several = not options.get("stream") and self.number_of_answers(options) > 1
        return not several and super()._should_stream(**options)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Like `BaseChatModel.batch`, a thread per conversation, but with enough threads to fill the engine."""
        configs = get_config_list(config, len(inputs))
        if configs and configs[0].get("max_concurrency") is None:
            threads = min(len(inputs), max(_MAX_THREADS, self.max_batch_size))
            configs[0] = {**configs[0], "max_concurrency": threads}
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002  LangChain reports tokens itself
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            request, n = self._request(messages, stop, kwargs), self.number_of_answers(kwargs)
            self.answer_params(request.sampling, n)  # raises before anything is loaded
            ensemble = self.load_ensemble(chat=True, within=request.sampling)
            calls = [request.prepare(ensemble) for _ in range(n)]
            params = self.answer_params(calls[0].params, n)
            answers = ensemble.generate([call.prompt for call in calls], params)
            return chat_result(answers, [call.parser for call in calls], self.model_name, ensemble.count_tokens)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002  as above
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            beside = beside_the_loop([message.content for message in messages], kwargs)
            request = await beside(partial(self._request, messages, stop, kwargs))
            n = self.number_of_answers(kwargs)
            self.answer_params(request.sampling, n)  # raises before anything is loaded
            ensemble = await self.aensemble(chat=True, within=request.sampling)
            calls = [await beside(partial(request.prepare, ensemble)) for _ in range(n)]
            params = self.answer_params(calls[0].params, n)
            answers = await ensemble.agenerate([call.prompt for call in calls], params)
            return chat_result(answers, [call.parser for call in calls], self.model_name, ensemble.count_tokens)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with langchain_errors():
            request = self._request(messages, stop, kwargs)
            self.check_streamed(kwargs)
            ensemble = self.load_ensemble(chat=True, within=request.sampling)
            call = request.prepare(ensemble)
            chunks = ChatChunks(call.parser, self.model_name, ensemble.count_tokens)
            with closing(ensemble.stream(call.prompt, call.params)) as pieces:
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
        with langchain_errors():
            beside = beside_the_loop([message.content for message in messages], kwargs)
            request = await beside(partial(self._request, messages, stop, kwargs))
            self.check_streamed(kwargs)
            ensemble = await self.aensemble(chat=True, within=request.sampling)
            call = await beside(partial(request.prepare, ensemble))
            chunks = ChatChunks(call.parser, self.model_name, ensemble.count_tokens)
            async with aclosing(ensemble.astream(call.prompt, call.params)) as pieces:
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
        """Makes the request and checks it before anything is loaded."""
        self.number_of_answers(options)
        given = {name: value for name, value in options.items() if name not in _NOT_SAMPLING and value is not None}
        own = {"strict": self.strict, "parallel_tool_calls": self.parallel_tool_calls}
        return ChatRequest.from_options(messages, {**own, **given}, self.sampling)
