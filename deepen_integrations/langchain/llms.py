"""An ensemble as a LangChain text-completion model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from typing_extensions import Self

from deepen_core.results import Generation as Answer
from deepen_integrations.adapter import DeepenAdapter, report

_TRACING = frozenset({"tags", "metadata", "run_name", "run_id"})
"""Keywords of `BaseLLM.generate` that are for its callbacks and not for the model."""


class DeepenLLM(BaseLLM, DeepenAdapter):
    r"""Several local language models with different tokenizers, answering as one.

    Setup:
        Install `deepen-integrations[langchain]`. No server and no key are needed.

    Key init args, completion params:
        max_new_tokens (or max_tokens): tokens of the main member to generate at most, 256 by default.
        temperature: 0, the default, takes the most probable token; above 0 samples.
        top_k, top_p, min_p, repetition_penalty, seed: how to choose among tokens.
        stop: strings before which the answer is cut. A call's own `stop` replaces them.
        timeout: seconds after which an answer ends with `finish_reason="timeout"`.
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
        from deepen_integrations.langchain import DeepenLLM

        llm = DeepenLLM.demo(max_new_tokens=16)
        # or DeepenLLM(models=["./general", "./specialist"], temperature=0.7)
        # or DeepenLLM.from_ensemble(ensemble), where ensemble = Ensemble.load(...)
        ```
        This loads nothing. The first call loads the models, once per process for equal ensemble params.

    Invoke:
        ```python
        llm.invoke("Question: Where does Mira live?\nAnswer:")
        llm.invoke("Question: Where does Mira live?\nAnswer:", max_new_tokens=4, stop=["\n"])
        ```
        Options of a call replace those of the model, and are part of the key of LangChain's cache.

    Stream:
        ```python
        for text in llm.stream("Question: Where does Mira live?\nAnswer:"):
            print(text, end="")
        ```

    Batch:
        ```python
        llm.batch(["Mira lives in", "Tomas works as a"])
        ```
        One call of the engine for all prompts.

    Async:
        ```python
        await llm.ainvoke("Mira lives in")
        ```
        Runs in LangChain's thread pool.

    Token usage and response metadata:
        ```python
        llm.generate(["Mira lives in"]).llm_output
        # {"token_usage": {"prompt_tokens": ..., "completion_tokens": ..., ...}, "model_name": ...}
        ```
        Each generation's `generation_info` holds its own `usage` and `finish_reason`.

    Logprobs:
        ```python
        llm.generate(["Mira lives in"], logprobs=2).generations[0][0].generation_info["logprobs"]
        ```
    """

    @property
    def _llm_type(self) -> str:
        return "deepen"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """Everything that changes an answer, as plain JSON; LangChain calls a call's own strings `stop`."""
        sampling = self.sampling({}).model_dump(mode="json")
        sampling["default_stop"] = sampling.pop("stop")
        return {**self.loading().model_dump(mode="json"), **sampling}

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `BaseLLM.generate`; options given by keyword become part of the cache key and of the trace."""
        llm, tracing = self._for_call(kwargs)
        return super(DeepenLLM, llm).generate(prompts, stop, callbacks, **tracing)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `BaseLLM.agenerate`; options given by keyword become part of the cache key and of the trace."""
        llm, tracing = self._for_call(kwargs)
        # langchain-core 1.7.2 takes an empty list for one of callbacks per prompt and fails.
        return await super(DeepenLLM, llm).agenerate(prompts, stop, callbacks or None, **tracing)

    def with_options(self, **options: Any) -> Self:
        """As `DeepenAdapter.with_options`; the copy's serialized form is its own."""
        copy = super().with_options(**options)
        copy.__dict__.pop("_serialized", None)
        return copy

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of a text by the main member's tokenizer, without BOS; `get_num_tokens` counts them."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.ensemble.tokenize(text)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 (without it no option gets here)
        **kwargs: Any,
    ) -> LLMResult:
        params = self.sampling({**kwargs, "stop": stop})
        answers = self.ensemble.generate(prompts, params)
        told = [report(answer) for answer in answers]
        totals = {key: sum(one["usage"][key] for one in told) for key in told[0]["usage"]} if told else {}
        return LLMResult(
            generations=[
                [Generation(text=answer.text, generation_info=one)]
                for _, answer, one in zip(prompts, answers, told, strict=True)
            ],
            llm_output={"token_usage": totals, "model_name": self.model_name},
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        params = self.sampling({**kwargs, "stop": stop})
        pieces = self.ensemble.stream(prompt, params)
        try:
            for piece in pieces:
                chunk = GenerationChunk(text=piece.text, generation_info=self._last_info(piece.generation))
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            pieces.close()

    def _last_info(self, answer: Answer | None) -> dict[str, Any] | None:
        """What the last chunk tells. Chunks are merged by adding, so no other one may tell it."""
        return None if answer is None else {**report(answer), "model_name": self.model_name}

    def _for_call(self, kwargs: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A copy that has a call's options as its own, and what is left for LangChain.

        LangChain's cache key and traces are made of the model's own options and not of the call's.
        """
        tracing = {name: kwargs[name] for name in _TRACING & kwargs.keys()}
        options = {name: value for name, value in kwargs.items() if name not in _TRACING}
        llm = self.with_options(**options) if options else self
        return llm, tracing
