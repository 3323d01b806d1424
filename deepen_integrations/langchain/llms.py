"""An ensemble as a LangChain text-completion model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.load import dumpd
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig
from pydantic import model_validator
from typing_extensions import Self

from deepen_core import __version__
from deepen_integrations.langchain.outputs import generation_chunk, joined_chunks, llm_result
from deepen_integrations.langchain.partial_failures import ApartBatches, known_outcomes
from deepen_integrations.langchain.prompts import PromptReader

_PASSED_ON = frozenset({"tags", "metadata", "run_name", "run_id", "errors_apart"})
"""Keywords of `generate` that are no options of the engine's: for LangChain's callbacks, and from `batch`."""


class DeepenLLM(ApartBatches, PromptReader):
    r"""Several local language models with different tokenizers, answering as one.

    Setup:
        Install `deepen-integrations[langchain]`. No server and no key are needed; `api_key` and `max_retries` are
        accepted and mean nothing.

    Key init args, completion params:
        max_new_tokens (or max_tokens): tokens of the main member to generate at most, 256 by default.
        temperature: 0, the default, takes the most probable token; above 0 samples.
        top_k, top_p, min_p, repetition_penalty, seed: how to choose among tokens.
        stop: strings before which the answer is cut. A call's own `stop` replaces them, `[]` by none.
        timeout: seconds after which an answer ends with `finish_reason="timeout"` and what it has.
        logprobs: report the log-probability of each token, and of so many alternatives.
        on_member_error: "raise", or "drop" to go on without a member that fails.
        apply_chat_template: whether members render messages by their own templates.

    Key init args, ensemble params:
        models: folders in transformers format, hub ids or `MemberConfig`s; "demo" is the embedded demo.
        main: whose vocabulary is spoken, by index or name.
        weights: how much each member counts.
        fusion: "deepen", "deepen-paper" or a `FusionConfig`.
        device, dtype: for members that name none.
        max_batch_size: how many requests are decoded together at most.

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
        Options of a call replace those of the model, and are part of traces and of the key of LangChain's cache.
        Messages are rendered by each member's own chat template, if all of them have one. Strings are continued as
        they are.

    Stream:
        ```python
        for text in llm.stream("Question: Where does Mira live?\nAnswer:"):
            print(text, end="")
        ```
        A stream that is closed or abandoned ends the work.

    Batch:
        ```python
        llm.batch(["Mira lives in", "Tomas works as a"])
        llm.batch(["Mira lives in", "word " * 100_000], return_exceptions=True)
        ```
        One call of the engine for all prompts, of which only those that fail are exceptions. `max_concurrency` cuts
        the batch into slices that are decoded one after the other.

    Async:
        ```python
        await llm.ainvoke("Mira lives in")
        async for text in llm.astream("Mira lives in"):
            print(text, end="")
        await llm.abatch(["Mira lives in", "Tomas works as a"])
        ```
        No thread is held up, and a task that is cancelled ends the work.

    Token usage and response metadata:
        ```python
        llm.generate(["Mira lives in"]).llm_output
        # {"token_usage": {"prompt_tokens": ..., "completion_tokens": ..., ...}, "model_name": ...}
        ```
        Each generation's `generation_info`, and that of the last chunk of a stream, holds its own `usage`,
        `finish_reason` and `model_name`.

    Logprobs:
        ```python
        llm.generate(["Mira lives in"], logprobs=2).generations[0][0].generation_info["logprobs"]
        ```
    """

    @model_validator(mode="after")
    def _set_deepen_version(self) -> Self:
        self._add_version("deepen", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "deepen"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {**self.identifying_params(), "apply_chat_template": self.apply_chat_template}

    @property
    def _serialized(self) -> dict[str, Any]:  # kept once computed in BaseLLM, but options change
        return cast("dict[str, Any]", dumpd(self))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=self.told_stop(stop), **kwargs)

    # Options of a call: LangChain makes its cache keys and traces of the model's own options and not of the call's, so
    # every way in goes on with a copy that has them as its own.

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `BaseLLM.generate`; options given by keyword become part of the cache key and of the trace."""
        llm, passed_on = self._for_call(kwargs)
        return super(DeepenLLM, llm).generate(prompts, stop, callbacks, **passed_on)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `BaseLLM.agenerate`; options given by keyword become part of the cache key and of the trace."""
        llm, passed_on = self._for_call(kwargs)
        # langchain-core 1.7.2 takes an empty list for one of callbacks per prompt and fails.
        return await super(DeepenLLM, llm).agenerate(prompts, stop, callbacks or None, **passed_on)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """As `BaseLLM.stream`; options given by keyword become part of the trace."""
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
        """As `BaseLLM.astream`; options given by keyword become part of the trace."""
        llm = self.with_options(**kwargs) if kwargs else self
        pieces = cast("AsyncGenerator[str, None]", super(DeepenLLM, llm).astream(input, config, stop=stop))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    def _for_call(self, kwargs: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A copy that has a call's options as its own, and what is left for LangChain."""
        passed_on = {name: kwargs[name] for name in _PASSED_ON & kwargs.keys()}
        options = {name: value for name, value in kwargs.items() if name not in _PASSED_ON}
        return (self.with_options(**options) if options else self), passed_on

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        errors_apart: bool = False,
        **kwargs: Any,
    ) -> LLMResult:
        if (known := known_outcomes(prompts)) is not None:
            return llm_result(prompts, known, self.model_name)
        if len(prompts) == 1 and not errors_apart and run_manager is not None and run_manager.handlers:
            return joined_chunks(list(self._stream(prompts[0], stop, run_manager, **kwargs)))
        params = self.sampling({**kwargs, "stop": stop})
        ensemble = self.ensemble
        read = [self._read(prompt, ensemble) for prompt in prompts]
        outcomes = ensemble.generate(read, params, return_exceptions=errors_apart)
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
        if (known := known_outcomes(prompts)) is not None:
            return llm_result(prompts, known, self.model_name)
        if len(prompts) == 1 and not errors_apart and run_manager is not None and run_manager.handlers:
            async with aclosing(self._astream(prompts[0], stop, run_manager, **kwargs)) as chunks:
                return joined_chunks([chunk async for chunk in chunks])
        params = self.sampling({**kwargs, "stop": stop})
        ensemble = await self.aensemble()
        read = [self._read(prompt, ensemble) for prompt in prompts]
        outcomes = await ensemble.agenerate(read, params, return_exceptions=errors_apart)
        return llm_result(prompts, outcomes, self.model_name, errors_apart)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        params = self.sampling({**kwargs, "stop": stop})
        ensemble = self.ensemble
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
        params = self.sampling({**kwargs, "stop": stop})
        ensemble = await self.aensemble()
        async with aclosing(ensemble.astream(self._read(prompt, ensemble), params)) as pieces:
            async for piece in pieces:
                chunk = generation_chunk(piece, self.model_name)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
