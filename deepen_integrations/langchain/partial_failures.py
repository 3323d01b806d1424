"""Batches that fail in part: LangChain gives all prompts of a call one outcome, and users want each prompt's own."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from typing_extensions import Self

from deepen_core.errors import DeepenError, brief

if TYPE_CHECKING:
    from deepen_core.engine.frontend import Outcome


class AnsweredPrompt(str):
    """A prompt whose outcome is already known.

    Attributes:
        outcome: The answer, or the error in its place.
    """

    __slots__ = ("outcome",)

    outcome: Outcome

    @classmethod
    def from_outcome(cls, prompt: str, outcome: Outcome) -> Self:
        """Attaches an outcome to a prompt."""
        answered = cls(prompt)
        answered.outcome = outcome
        return answered


class PartialFailureError(DeepenError):
    """Some prompts of one engine call failed. It ends LangChain's call; then each prompt gets its own outcome.

    Args:
        prompts: The prompts of the call.
        outcomes: An answer or an error for each.
    """

    def __init__(self, prompts: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        failed = [outcome for outcome in outcomes if isinstance(outcome, DeepenError)]
        super().__init__(
            f"{len(failed)} of {len(prompts)} prompts that were decoded together failed; a separate run reports the "
            f"outcome of each. The first failed with {brief(failed[0])}"
        )
        self._given = (list(prompts), list(outcomes))
        self._outcomes: defaultdict[str, deque[Outcome]] = defaultdict(deque)
        for prompt, outcome in zip(prompts, outcomes, strict=True):
            self._outcomes[prompt].append(outcome)

    def __reduce__(self) -> tuple[type[Self], tuple[list[str], list[Outcome]]]:
        """Copies and pickles are made from the arguments, as the message alone would not make one."""
        return type(self), self._given

    def take(self, prompt: str) -> str:
        """Returns the prompt with its outcome; unchanged if LangChain's cache answered it before the engine."""
        outcomes = self._outcomes[prompt]
        return AnsweredPrompt.from_outcome(prompt, outcomes.popleft()) if outcomes else prompt


def known_outcomes(prompts: Sequence[str]) -> list[Outcome] | None:
    """Returns the outcomes of prompts that have been through the engine; None if any has not."""
    answered = [prompt.outcome for prompt in prompts if isinstance(prompt, AnsweredPrompt)]
    return answered if prompts and len(answered) == len(prompts) else None


class BatchInputs:
    """The inputs of a batch that can be read, and the errors of those that cannot.

    Args:
        inputs: The inputs of `batch`.
        config: One for all of them, or one each.
        convert: Reads an input.

    Attributes:
        values: The readable inputs.
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
            except Exception as error:  # noqa: BLE001 (returned in its place)
                self._errors.append(error)
            else:
                self.values.append(value)
                self.configs.append(its_config)
                self._errors.append(None)

    def outputs(self, found: list[Any], generate: Callable[..., LLMResult]) -> list[str]:
        """Returns an output, or the error in its place, for every input.

        Args:
            found: What LangChain's `batch` returned for the readable inputs.
            generate: The model's `generate`, which reports a prompt's outcome in a run of its own.
        """
        if found and isinstance(failure := found[0], PartialFailureError):
            found = []
            for prompt, run in self._runs(failure):
                try:
                    found.append(_text(generate([prompt], **run)))
                except Exception as error:  # noqa: BLE001 (returned in its place)
                    found.append(error)
        return self._in_place(found)

    async def aoutputs(self, found: list[Any], agenerate: Callable[..., Awaitable[LLMResult]]) -> list[str]:
        """Like `outputs`, for an event loop."""
        if found and isinstance(failure := found[0], PartialFailureError):
            found = []
            for prompt, run in self._runs(failure):
                try:
                    found.append(_text(await agenerate([prompt], **run)))
                except Exception as error:  # noqa: BLE001 (returned in its place)
                    found.append(error)
        return self._in_place(found)

    def _runs(self, failure: PartialFailureError) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields each readable input's prompt with its outcome, and the options of its own run."""
        for prompt, config in zip(self._prompts, self.configs, strict=True):
            names = ("callbacks", "tags", "metadata", "run_name")
            yield failure.take(prompt), {name: config.get(name) for name in names}

    def _in_place(self, outputs: Sequence[Any]) -> list[str]:
        """Merges the outputs of the readable inputs and the errors of the others, in the order of the inputs."""
        coming = iter(outputs)
        return cast("list[str]", [next(coming) if error is None else error for error in self._errors])


def _text(result: LLMResult) -> str:
    return result.generations[0][0].text
