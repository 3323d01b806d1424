"""Batches of which a part fails: LangChain gives all prompts of a call one fate, users want each prompt's own."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from typing_extensions import Self

from deepen_core.errors import DeepenError, brief

if TYPE_CHECKING:
    from deepen_core.engine.frontend import Outcome


class AnsweredPrompt(str):
    """A prompt whose outcome is known already.

    Attributes:
        outcome: The answer, or the error in its place.
    """

    __slots__ = ("outcome",)

    outcome: Outcome

    @classmethod
    def from_outcome(cls, prompt: str, outcome: Outcome) -> Self:
        """A prompt with its outcome."""
        answered = cls(prompt)
        answered.outcome = outcome
        return answered


class PartialFailureError(DeepenError):
    """Some prompts of one call of the engine failed. It ends the call; then each prompt is told its own outcome.

    Args:
        prompts: What was asked.
        outcomes: An answer or an error for each.
    """

    def __init__(self, prompts: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        failed = [outcome for outcome in outcomes if isinstance(outcome, DeepenError)]
        super().__init__(
            f"{len(failed)} of {len(prompts)} prompts that were decoded together failed; runs of their own tell what "
            f"became of each. The first failed by {brief(failed[0])}"
        )
        self._outcomes: defaultdict[str, deque[Outcome]] = defaultdict(deque)
        for prompt, outcome in zip(prompts, outcomes, strict=True):
            self._outcomes[prompt].append(outcome)

    def take(self, prompt: str) -> str:
        """The prompt with its outcome; as it is, if LangChain's cache has kept it from the engine."""
        outcomes = self._outcomes[prompt]
        return AnsweredPrompt.from_outcome(prompt, outcomes.popleft()) if outcomes else prompt


def known_outcomes(prompts: Sequence[str]) -> list[Outcome] | None:
    """The outcomes of prompts that have been through the engine; None if any has not."""
    answered = [prompt.outcome for prompt in prompts if isinstance(prompt, AnsweredPrompt)]
    return answered if prompts and len(answered) == len(prompts) else None


class ApartBatches(BaseLLM):
    """A model whose `_generate` takes `errors_apart` and raises `PartialFailureError` where only some prompts fail."""

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """As `BaseLLM.batch`; with `return_exceptions` only the prompts that fail are exceptions."""
        kwargs.pop("errors_apart", None)  # from here, where a batch comes in slices
        if not return_exceptions or len(inputs) == 1:
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        sorted_ = _SortedInputs(inputs, config, self._convert_input)
        apart = {**kwargs, "errors_apart": True}
        outputs: list[Any] = super().batch(sorted_.values, sorted_.configs, return_exceptions=True, **apart)
        if outputs and isinstance(failure := outputs[0], PartialFailureError):
            outputs = []
            for prompt, run in sorted_.runs(failure):
                try:
                    outputs.append(self.generate([prompt], **run, **kwargs).generations[0][0].text)
                except Exception as error:  # noqa: BLE001 (told in its place)
                    outputs.append(error)
        return sorted_.in_place(outputs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """As `BaseLLM.abatch`; with `return_exceptions` only the prompts that fail are exceptions."""
        kwargs.pop("errors_apart", None)  # from here, where a batch comes in slices
        if not return_exceptions or len(inputs) == 1:
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        sorted_ = _SortedInputs(inputs, config, self._convert_input)
        apart = {**kwargs, "errors_apart": True}
        outputs: list[Any] = await super().abatch(sorted_.values, sorted_.configs, return_exceptions=True, **apart)
        if outputs and isinstance(failure := outputs[0], PartialFailureError):
            outputs = []
            for prompt, run in sorted_.runs(failure):
                try:
                    outputs.append((await self.agenerate([prompt], **run, **kwargs)).generations[0][0].text)
                except Exception as error:  # noqa: BLE001 (told in its place)
                    outputs.append(error)
        return sorted_.in_place(outputs)


class _SortedInputs:
    """The inputs of a batch that can be read, and the errors of those that cannot.

    Args:
        inputs: What `batch` was given.
        config: One for all of them, or one each.
        convert: Reads an input.

    Attributes:
        values: The readable ones.
        configs: Their configurations.
    """

    def __init__(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None,
        convert: Callable[[LanguageModelInput], PromptValue],
    ) -> None:
        self.values: list[LanguageModelInput] = []
        self.configs: list[RunnableConfig] = []
        self._prompts: list[str] = []
        self._errors: list[Exception | None] = []
        for one, its_config in zip(inputs, get_config_list(config, len(inputs)), strict=True):
            try:
                value = convert(one)
                self._prompts.append(value.to_string())
            except Exception as error:  # noqa: BLE001 (told in its place)
                self._errors.append(error)
            else:
                self.values.append(value)
                self.configs.append(its_config)
                self._errors.append(None)

    def runs(self, failure: PartialFailureError) -> Iterator[tuple[str, dict[str, Any]]]:
        """For each readable input its prompt with its outcome, and how its own run is to be reported."""
        for prompt, config in zip(self._prompts, self.configs, strict=True):
            names = ("callbacks", "tags", "metadata", "run_name")
            yield failure.take(prompt), {name: config.get(name) for name in names}

    def in_place(self, outputs: Sequence[Any]) -> list[str]:
        """The outputs of the readable inputs, and the errors of the others, in the order of the inputs."""
        coming = iter(outputs)
        return cast("list[str]", [next(coming) if error is None else error for error in self._errors])
