"""Samples several answers of a LangChain model, those of this package's models in one call of the engine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.runnables.configurable import DynamicRunnable
from typing_extensions import Self

from deepen_integrations.langchain.base import LangChainAdapter


@dataclass(frozen=True)
class SampledAnswer:
    """A sampled answer.

    Attributes:
        output: As the model gave it: a message or a text.
        text: What is compared: its text, or its tool calls as JSON.
        calls: Whether it calls tools.
        nats: How likely it was to the model, in nats a byte; None if that was not reported.
    """

    output: Any
    text: str
    calls: bool
    nats: float | None

    @classmethod
    def from_output(cls, output: Any, info: Mapping[str, Any]) -> Self:
        """Reads a model's output, and what it reports beside it."""
        nats = _nats_a_byte(info)
        if not isinstance(output, BaseMessage):
            return cls(output, str(output), calls=False, nats=nats)
        calls = [{"name": call["name"], "args": call["args"]} for call in getattr(output, "tool_calls", ())]
        text = json.dumps(calls, ensure_ascii=False, sort_keys=True) if calls else str(output.text)
        return cls(output, text, bool(calls), nats)

    @classmethod
    def from_generation(cls, generation: Generation) -> Self:
        """Reads a generation of `generate`."""
        info = generation.generation_info or {}
        output = generation.message if isinstance(generation, ChatGeneration) else generation.text
        return cls.from_output(output, info)


@dataclass(frozen=True)
class SampleRequest:
    """Several answers of one model to one input.

    Attributes:
        llm: The model.
        asked: The input.
        n: Number of answers.
        config: Of the call.
        options: Of the call.
    """

    llm: Runnable[Any, Any]
    asked: LanguageModelInput
    n: int
    config: RunnableConfig
    options: dict[str, Any]

    @classmethod
    def bare(
        cls,
        llm: Runnable[Any, Any],
        asked: LanguageModelInput,
        n: int,
        config: RunnableConfig,
        options: Mapping[str, Any],
        *,
        likely: bool,
    ) -> Self:
        """Makes a request of a model itself, with the options and the config that are bound to it.

        Args:
            llm: The model, or what wraps it.
            asked: The input.
            n: Number of answers.
            config: Of the call.
            options: Of the call.
            likely: Whether log-probabilities are needed.
        """
        request = cls(llm, asked, n, config, dict(options))
        while isinstance(request.llm, (DynamicRunnable, RunnableBinding)):
            if isinstance(request.llm, DynamicRunnable):
                prepared, bound = request.llm.prepare(request.config)
                request = replace(request, llm=prepared, config=bound)
            else:
                bound = request.llm._merge_configs(request.config)  # noqa: SLF001  as its own `invoke` does
                given = {**request.llm.kwargs, **request.options}
                request = replace(request, llm=request.llm.bound, config=bound, options=given)
        llm = request.llm
        if likely and isinstance(llm, LangChainAdapter) and llm.sampling({}).logprobs is None:
            request.options.setdefault("logprobs", 0)
        return request

    def sample(self) -> list[SampledAnswer]:
        """Returns the answers."""
        if isinstance(self.llm, LangChainAdapter):
            llm = cast("Any", self.llm)
            prompt = llm._convert_input(self.asked)  # noqa: SLF001  as its own `invoke` does
            return self._generated(llm.generate_prompt([prompt], **self._passed()))
        outputs = self.llm.batch([self.asked] * self.n, self.config, **self.options)
        return [SampledAnswer.from_output(output, getattr(output, "response_metadata", {})) for output in outputs]

    async def asample(self) -> list[SampledAnswer]:
        """Like `sample`."""
        if isinstance(self.llm, LangChainAdapter):
            llm = cast("Any", self.llm)
            prompt = llm._convert_input(self.asked)  # noqa: SLF001  as above
            return self._generated(await llm.agenerate_prompt([prompt], **self._passed()))
        outputs = await self.llm.abatch([self.asked] * self.n, self.config, **self.options)
        return [SampledAnswer.from_output(output, getattr(output, "response_metadata", {})) for output in outputs]

    def _passed(self) -> dict[str, Any]:
        """Returns the keywords of `generate_prompt`: LangChain's own from the config, and the call's options."""
        names = ("callbacks", "tags", "metadata", "run_name")
        passed = {name: self.config[name] for name in names if self.config.get(name) is not None}  # type: ignore[literal-required]
        return {**self.options, **passed, "n": self.n}

    @staticmethod
    def _generated(result: LLMResult) -> list[SampledAnswer]:
        [generations] = result.generations
        return [SampledAnswer.from_generation(generation) for generation in generations]


def _nats_a_byte(info: Mapping[str, Any]) -> float | None:
    """Returns the likelihood of an answer whose log-probabilities are reported in OpenAI's shape; -inf for none."""
    tokens = (info.get("logprobs") or {}).get("content")
    if tokens is None:
        return None
    length = sum(len(token.get("bytes") or token["token"].encode()) for token in tokens)
    return sum(token["logprob"] for token in tokens) / length if length else -math.inf
