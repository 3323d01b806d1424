"""An ensemble as a LangChain text-completion model."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.load import dumpd
from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import AnyConfigurableField
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import model_validator
from typing_extensions import Self

from deepen_core import __version__
from deepen_core.config import SamplingParams
from deepen_integrations.langchain.base import LangChainAdapter, SerializableModel
from deepen_integrations.langchain.errors import langchain_errors
from deepen_integrations.langchain.messages import plain_messages
from deepen_integrations.langchain.outputs import generation_chunk, joined_chunks, llm_result
from deepen_integrations.langchain.partial_failures import BatchInputs, known_outcomes
from deepen_integrations.langchain.prompts import Conversation, keep_messages

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.members.context_budget import ContextBudget

_PASSED_ON = frozenset({"tags", "metadata", "run_name", "run_id", "errors_apart"})
"""Keywords of `generate` that are not engine options: LangChain's callbacks use them, or `batch` sets them."""


class DeepenLLM(SerializableModel, BaseLLM, LangChainAdapter):
    r"""Several local language models with different tokenizers that answer as one.

    Setup:
        Install `deepen-integrations[langchain]`. There is no server and no key; options that are only
        for servers have no effect.

    Key init args, completion params:
        max_new_tokens (or max_tokens): maximum number of the main model's tokens to generate; by default 256,
            or 4096 where main's chat template may let it think first.
        temperature: 0, the default, takes the most probable token; above 0 samples.
        top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty, seed: how tokens are chosen.
        stop: strings at which the answer is cut. A call's own `stop` replaces them; `[]` removes them.
        timeout: seconds until the partial answer is returned, with `finish_reason="timeout"`.
        logprobs: report each token's log-probability, and this many alternatives.
        on_member_error: "raise", or "drop" to continue without a member that fails.
        apply_chat_template: whether members render messages with their own templates.

    Key init args, ensemble params:
        models: folders in transformers format, hub ids or `MemberConfig`s; "demo" is the embedded demo.
        main: the model whose tokens are generated, by index or name.
        weights: each member's share in the fusion, or a policy such as "static" or "context".
        fusion: a name in `deepen_core.config.PRESETS`, or the options of a strategy, such as `FusionConfig`.
        device, dtype: for members without their own.
        max_batch_size: maximum number of requests decoded together.

    Instantiate:
        ```python
        from deepen_integrations.langchain import DeepenLLM

        llm = DeepenLLM.demo(max_new_tokens=16)
        # or DeepenLLM(models=["./general", "./specialist"], temperature=0.7)
        # or DeepenLLM.from_ensemble(ensemble), where ensemble = Ensemble.load(...)
        ```
        This loads nothing. The first call loads the models, once per process for equal ensemble params. They are
        released by `close()`, at the end of a `with` block or with the last model that uses them.

    Invoke:
        ```python
        llm.invoke("Question: Where does Mira live?\nAnswer:")
        llm.invoke("Question: Where does Mira live?\nAnswer:", max_new_tokens=4, stop=["\n"])
        llm.invoke([("system", "Be brief."), ("human", "Where does Mira live?")])
        ```
        Options of a call override those of the model; traces and the key of LangChain's cache include them. Messages
        are rendered with each member's own chat template if all members have one. Strings are continued verbatim.

    Stream:
        ```python
        for text in llm.stream("Question: Where does Mira live?\nAnswer:"):
            print(text, end="")
        ```
        Closing or abandoning a stream ends the work.

    Batch:
        ```python
        llm.batch(["Mira lives in", "Tomas works as a"])
        llm.batch(["Mira lives in", "word " * 100_000], return_exceptions=True)
        ```
        All prompts go to the engine in one call; only those that fail become exceptions. `max_concurrency` splits the
        batch into slices that are decoded one after the other.

    Async:
        ```python
        await llm.ainvoke("Mira lives in")
        async for text in llm.astream("Mira lives in"):
            print(text, end="")
        await llm.abatch(["Mira lives in", "Tomas works as a"])
        ```
        No thread waits, and cancelling a task ends the work.

    Token usage and response metadata:
        ```python
        llm.generate(["Mira lives in"]).llm_output
        # {"token_usage": {"prompt_tokens": ..., "completion_tokens": ..., ...}, "model_name": ...}
        ```
        The `generation_info` of each generation, and of a stream's last chunk, has its own `usage`, `finish_reason`
        and `model_name`.

    Logprobs:
        ```python
        llm.generate(["Mira lives in"], logprobs=2).generations[0][0].generation_info["logprobs"]
        ```
    """

    apply_chat_template: bool | Literal["auto"] = "auto"
    """Whether messages are rendered with each member's own chat template; "auto": if all members have one. Otherwise
    they are joined to one text, `Human: ...`, as LangChain does for other models. Strings are never rendered."""

    @model_validator(mode="after")
    def _set_deepen_version(self) -> Self:
        if hasattr(self, "_add_version"):  # since langchain-core 1.4.6
            self._add_version("deepen", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "deepen"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {**self.identifying_params(), "apply_chat_template": self.apply_chat_template}

    @property
    def _serialized(self) -> dict[str, Any]:  # BaseLLM caches it, but options change
        return cast("dict[str, Any]", dumpd(self))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=self.stop_strings(stop), **kwargs)

    # Prompts and their tokens

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        value = super()._convert_input(model_input)
        return value if self.apply_chat_template is False else keep_messages(value)

    def _read(self, prompt: str, ensemble: Ensemble) -> str | list[dict[str, str]]:
        """Returns a prompt as the engine takes it."""
        if not isinstance(prompt, Conversation):
            return prompt
        return prompt.messages if self._renders(ensemble) else prompt.joined

    def _renders(self, ensemble: Ensemble | ContextBudget) -> bool:
        return ensemble.has_chat_template if self.apply_chat_template == "auto" else self.apply_chat_template

    def _needs_templates(self, prompts: Sequence[str]) -> bool:
        """Whether no prompt can be answered by members without chat templates."""
        return self.apply_chat_template is True and all(isinstance(prompt, Conversation) for prompt in prompts)

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[LanguageModelInput, str]:
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

        Loads no weights.

        Args:
            messages: The conversation. It is rendered with the members' chat templates if prompts are.
            tools: Counted as their JSON schemas, although this model's prompts do not contain them.

        Raises:
            PromptError: If a message contains anything but text.
        """
        schemas = [json.dumps(convert_to_openai_tool(tool), ensure_ascii=False) for tool in tools or ()]
        described = sum(map(self.get_num_tokens, schemas))
        if self.custom_get_token_ids is None and self._renders(self.budget):
            return described + self.token_count(plain_messages(messages), None)
        return described + self.get_num_tokens(get_buffer_string(messages))

    # The public methods. LangChain builds cache keys and traces from the model's options, not from the call's, so each
    # method continues on a copy that has the call's options as its own.

    def generate_prompt(
        self,
        prompts: list[PromptValue],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Like `BaseLLM.generate_prompt`, but messages remain messages, as in `invoke`."""
        return super().generate_prompt([self._convert_input(p) for p in prompts], stop, callbacks, **kwargs)

    async def agenerate_prompt(
        self,
        prompts: list[PromptValue],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Like `BaseLLM.agenerate_prompt`, but messages remain messages, as in `ainvoke`."""
        return await super().agenerate_prompt([self._convert_input(p) for p in prompts], stop, callbacks, **kwargs)

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Like `BaseLLM.generate`; the cache key and the trace include options given by keyword."""
        llm, passed_on = self._for_call(kwargs)
        return super(DeepenLLM, llm).generate(prompts, stop, callbacks, **passed_on)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Like `BaseLLM.agenerate`; the cache key and the trace include options given by keyword."""
        llm, passed_on = self._for_call(kwargs)
        # langchain-core 1.7.2 takes an empty list to mean one list of callbacks per prompt, and fails.
        return await super(DeepenLLM, llm).agenerate(prompts, stop, callbacks or None, **passed_on)

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Like `BaseLLM.invoke`; decodes one answer, whatever `n` is."""
        return super().invoke(input, config, stop=stop, **self.one_answer_options(kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Like `BaseLLM.ainvoke`; decodes one answer, whatever `n` is."""
        return await super().ainvoke(input, config, stop=stop, **self.one_answer_options(kwargs))

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Like `BaseLLM.batch`, but with `return_exceptions` only the prompts that fail become exceptions."""
        kwargs = self.one_answer_options(kwargs)
        kwargs.pop("errors_apart", None)  # set below, when LangChain splits a batch into slices
        if not return_exceptions or len(inputs) == 1:
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        batch, apart = BatchInputs(inputs, config, self._convert_input), {**kwargs, "errors_apart": True}
        found = super().batch(batch.values, batch.configs, return_exceptions=True, **apart)
        return batch.outputs(found, partial(self.generate, **kwargs))

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Like `BaseLLM.abatch`, but with `return_exceptions` only the prompts that fail become exceptions."""
        kwargs = self.one_answer_options(kwargs)
        kwargs.pop("errors_apart", None)  # set below, when LangChain splits a batch into slices
        if not return_exceptions or len(inputs) == 1:
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        batch, apart = BatchInputs(inputs, config, self._convert_input), {**kwargs, "errors_apart": True}
        found = await super().abatch(batch.values, batch.configs, return_exceptions=True, **apart)
        return await batch.aoutputs(found, partial(self.agenerate, **kwargs))

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Like `BaseLLM.stream`; the trace includes options given by keyword."""
        self.check_streamed(kwargs)
        llm = self.with_options(**kwargs) if kwargs else self
        yield from super(DeepenLLM, llm).stream(input, config, stop=stop)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str]:
        """Like `BaseLLM.astream`; the trace includes options given by keyword."""
        self.check_streamed(kwargs)
        llm = self.with_options(**kwargs) if kwargs else self
        pieces = cast("AsyncGenerator[str, None]", super(DeepenLLM, llm).astream(input, config, stop=stop))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    def _for_call(self, kwargs: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Returns a copy that has a call's options as its own, and the keywords left for LangChain."""
        passed_on = {name: kwargs[name] for name in _PASSED_ON & kwargs.keys()}
        options = {name: value for name, value in kwargs.items() if name not in _PASSED_ON}
        return (self.with_options(**options) if options else self), passed_on

    # LangChain's hooks, which call the engine

    def _answer_params(self, options: Mapping[str, Any], stop: Sequence[str] | None) -> list[SamplingParams]:
        """Returns the options of each answer to a prompt."""
        return self.answer_params(self.sampling({**options, "stop": stop}), self.n)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        errors_apart: bool = False,
        **kwargs: Any,
    ) -> LLMResult:
        with langchain_errors():
            if (known := known_outcomes(prompts)) is not None:
                return llm_result(prompts, known, self.model_name)
            if len(prompts) == self.n == 1 and not errors_apart and run_manager is not None and run_manager.handlers:
                return joined_chunks(list(self._stream(prompts[0], stop, run_manager, **kwargs)))
            params = self._answer_params(kwargs, stop)
            ensemble = self.load_ensemble(chat=self._needs_templates(prompts), within=params[0])
            read = [self._read(prompt, ensemble) for prompt in prompts for _ in params]
            outcomes = ensemble.generate(read, params * len(prompts), return_exceptions=errors_apart)
            return llm_result(prompts, outcomes, self.model_name, errors_apart)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        errors_apart: bool = False,
        **kwargs: Any,
    ) -> LLMResult:
        with langchain_errors():
            if (known := known_outcomes(prompts)) is not None:
                return llm_result(prompts, known, self.model_name)
            if len(prompts) == self.n == 1 and not errors_apart and run_manager is not None and run_manager.handlers:
                async with aclosing(self._astream(prompts[0], stop, run_manager, **kwargs)) as chunks:
                    return joined_chunks([chunk async for chunk in chunks])
            params = self._answer_params(kwargs, stop)
            ensemble = await self.aensemble(chat=self._needs_templates(prompts), within=params[0])
            read = [self._read(prompt, ensemble) for prompt in prompts for _ in params]
            outcomes = await ensemble.agenerate(read, params * len(prompts), return_exceptions=errors_apart)
            return llm_result(prompts, outcomes, self.model_name, errors_apart)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with langchain_errors():
            params = self.sampling({**kwargs, "stop": stop})
            ensemble = self.load_ensemble(chat=self._needs_templates([prompt]), within=params)
            with closing(ensemble.stream(self._read(prompt, ensemble), params)) as pieces:
                for piece in pieces:
                    chunk = generation_chunk(piece, self.model_name)
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[GenerationChunk, None]:
        with langchain_errors():
            params = self.sampling({**kwargs, "stop": stop})
            ensemble = await self.aensemble(chat=self._needs_templates([prompt]), within=params)
            async with aclosing(ensemble.astream(self._read(prompt, ensemble), params)) as pieces:
                async for piece in pieces:
                    chunk = generation_chunk(piece, self.model_name)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
