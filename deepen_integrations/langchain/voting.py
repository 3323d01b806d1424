"""A LangChain runnable that samples several answers of a model and returns one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import get_executor_for_config
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from deepen_core.errors import SamplingError
from deepen_core.voting import Ballot, By, Choice, Extract, extractor
from deepen_integrations.langchain.errors import langchain_errors
from deepen_integrations.langchain.sampled_answers import SampledAnswer, SampleRequest


class VotingRunnable(RunnableSerializable[LanguageModelInput, Any]):
    """Samples several answers of a model and returns the one that wins: a message of a chat model, or a text.

    The `response_metadata` of a message gets `votes`: how it was chosen, the share of the winner, how many answers come
    to what, and the candidates. `Ensemble.vote` is the same without LangChain.

    Any model will do, also with bound options (`bind`, `bind_tools`, `configurable_fields`). Answers are sampled at the
    model's own temperature, which must be above 0. Those of `ChatDeepen` and `DeepenLLM` are decoded together, and with
    a `seed` each uses the next number; other models are asked `n` times by `batch`.

    Example:
        ```python
        from deepen_integrations.langchain import ChatDeepen, VotingRunnable

        voting = VotingRunnable(llm=ChatDeepen.demo(max_tokens=12, temperature=0.7, seed=1), n=5)
        answer = voting.invoke("Where does Felix live?")
        print(answer.content, answer.response_metadata["votes"]["votes"])
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    llm: Runnable[Any, Any]
    """A chat model or a text model."""
    others: list[Runnable[Any, Any]] = Field(default_factory=list)
    """More models that vote, such as `ChatDeepen.from_ensemble(ensemble.alone("general"))` for a single member."""
    n: int = Field(default=5, ge=1)
    """Number of answers of each model."""
    by: By = "majority"
    """"majority": the answer that most come to; "mbr": the one that has most in common with the others; "likelihood":
    the one that was likeliest a byte to the model that gave it, which must report `logprobs`."""
    extract: Extract = "short"
    """What an answer comes to: "short", "number", "answer", a regular expression with a group, or a function, see
    `deepen_core.voting.extractor`. Tool calls are compared whole."""
    utility: Callable[[str, str], float] | None = None
    """For "mbr": how good an answer (the first) is if another is right; chrF by default (extra `voting`)."""

    @model_validator(mode="after")
    def _can_be_followed(self) -> Self:
        with langchain_errors():
            self._ballot()
        return self

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain's `dumps` writes it."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where LangChain's `loads` finds the class."""
        return ["deepen_integrations", "langchain"]

    @property
    def OutputType(self) -> Any:  # noqa: N802 (LangChain's name)
        """What it returns."""
        return self.llm.OutputType

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Samples answers and returns the winner.

        Args:
            input: As for the model.
            config: As for the model.
            kwargs: Options of each call of the model.

        Raises:
            SamplingError: If all answers would be equal, or their likelihood is needed and not reported.
            Exception: What the models raise.
        """
        return self._call_with_config(self._vote, input, config, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Like `invoke`."""
        return await self._acall_with_config(self._avote, input, config, **kwargs)

    def _vote(
        self,
        asked: LanguageModelInput,
        run_manager: CallbackManagerForChainRun,  # noqa: ARG002  the config has its child
        config: RunnableConfig,
        **kwargs: Any,
    ) -> Any:
        requests = self._requests(asked, config, kwargs)
        with get_executor_for_config(config) as threads:  # together, so that the engine decodes them together
            found = list(threads.map(lambda request: request.sample(), requests))
        return self._won([answer for answers in found for answer in answers])

    async def _avote(
        self,
        asked: LanguageModelInput,
        run_manager: AsyncCallbackManagerForChainRun,  # noqa: ARG002  as above
        config: RunnableConfig,
        **kwargs: Any,
    ) -> Any:
        found = await asyncio.gather(*(request.asample() for request in self._requests(asked, config, kwargs)))
        return self._won([answer for answers in found for answer in answers])

    def _requests(
        self, asked: LanguageModelInput, config: RunnableConfig, options: Mapping[str, Any]
    ) -> list[SampleRequest]:
        likely = self.by == "likelihood"
        return [
            SampleRequest.bare(llm, asked, self.n, config, options, likely=likely) for llm in (self.llm, *self.others)
        ]

    def _ballot(self, calls: frozenset[str] = frozenset()) -> Ballot:
        read = extractor(self.extract)
        return Ballot(self.by, lambda text: text if text in calls else read(text), self.utility)

    def _won(self, answers: Sequence[SampledAnswer]) -> Any:
        """Returns the winner's output."""
        ballot = self._ballot(frozenset(answer.text for answer in answers if answer.calls))
        with langchain_errors():
            choice = ballot.choose([answer.text for answer in answers], self._likelihood(answers))
        output = answers[choice.place].output
        if not isinstance(output, BaseMessage):
            return output
        metadata = {**output.response_metadata, "votes": _told(choice)}
        return output.model_copy(update={"response_metadata": metadata})

    def _likelihood(self, answers: Sequence[SampledAnswer]) -> Callable[[Sequence[str]], list[float]] | None:
        known = {answer.text: answer.nats for answer in answers if answer.nats is not None}
        if len(known) == len({answer.text for answer in answers}):
            return lambda texts: [known[text] for text in texts]
        if self.by == "likelihood":
            raise SamplingError(
                "by='likelihood' needs the log-probabilities of answers, and the model does not report them in "
                "OpenAI's shape: ask it for logprobs, or choose by='majority' or 'mbr'."
            )
        return None


def _told(choice: Choice) -> dict[str, Any]:
    """Returns a vote as plain data."""
    candidates = [{"text": one.text, "answer": one.answer, "score": one.score} for one in choice.candidates]
    return {
        "by": choice.by,
        "answer": choice.answer,
        "share": choice.share,
        "votes": choice.votes,
        "candidates": candidates,
    }
