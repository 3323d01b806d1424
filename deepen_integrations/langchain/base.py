"""What the text model and the chat model for LangChain share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.load.serializable import Serializable
from langchain_core.runnables.utils import AnyConfigurableField
from pydantic import Field, model_validator
from typing_extensions import Self

from deepen_core.chat.messages import Prompt
from deepen_core.config import SamplingParams
from deepen_core.config.sampling import several_answers
from deepen_core.errors import ConfigurationError, SamplingError
from deepen_integrations.adapter import DeepenAdapter
from deepen_integrations.langchain.errors import langchain_errors
from deepen_integrations.load_options import LoadOptions


class SerializableModel(Serializable):
    """A model that LangChain's `dumps` writes and `loads(text, allowed_objects=[its class])` restores.

    List it first among the bases: LangChain's base classes are not serializable by default.
    """

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether `dumps` writes the model."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where `loads` finds the class."""
        ours = cls.__module__.startswith("deepen_integrations.")
        return ["deepen_integrations", "langchain"] if ours else cls.__module__.split(".")

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """The options that are objects, as JSON values."""
        loading: LoadOptions = self.loading()  # type: ignore[attr-defined]  # of `DeepenAdapter`
        models, fusion = loading.models, loading.fusion
        return {
            "models": models
            if isinstance(models, str)
            else [member.model_dump(mode="json", exclude_defaults=True) for member in models],
            "fusion": fusion if isinstance(fusion, str) else fusion.model_dump(mode="json"),
        }


class LangChainAdapter(DeepenAdapter):
    """An ensemble's options under LangChain's names."""

    n: int = Field(default=1, ge=1, strict=True)
    """Number of answers that `generate` returns for each prompt, decoded together; all other methods return one. More
    than one requires a temperature above 0. With a `seed`, each further answer uses the next number as its seed."""

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        """Accepts what `save` writes, and None for what is not given."""
        if isinstance(values, dict) and values.get("n", 1) is None:
            values = {name: value for name, value in values.items() if name != "n"}
        if isinstance(values, dict) and "default_stop" in values:
            values = dict(values)
            if "stop" in values:
                raise ConfigurationError("Give either stop or default_stop, its name in saved options, not both.")
            values["stop"] = values.pop("default_stop")
        return values

    def own_names(self, fields: Mapping[str, AnyConfigurableField]) -> dict[str, AnyConfigurableField]:
        """Returns configurable fields under the names that options have here: LangChain looks for these."""
        return {"max_new_tokens" if name == "max_tokens" else name: field for name, field in fields.items()}

    def number_of_answers(self, options: Mapping[str, Any]) -> int:
        """Returns `n` of a call, or else of this model.

        Raises:
            SamplingError: If it is not a number above 0.
        """
        n = self.n if options.get("n") is None else options["n"]
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise SamplingError(f"n is {n!r}: give the number of answers, 1 or more.")
        return n

    def one_answer_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a call's options for a method that returns one answer: the same, but with an `n` of 1."""
        return {**options, "n": 1} if self.number_of_answers(options) > 1 else dict(options)

    def check_streamed(self, options: Mapping[str, Any]) -> None:
        """Checks that a stream is not asked for several answers.

        Raises:
            SamplingError: If it does.
        """
        if options.get("n") is not None and (n := self.number_of_answers(options)) > 1:
            raise SamplingError(f"n is {n}: a stream is one answer. Ask with generate, or without n.")

    def answer_params(self, params: SamplingParams, n: int) -> list[SamplingParams]:
        """Returns the options of each of `n` answers to one prompt.

        Raises:
            SamplingError: If all answers would be equal.
        """
        return several_answers(params, n)

    def with_options(self, **options: Any) -> Self:
        """Like `DeepenAdapter.with_options`, and accepts `n` as well."""
        n = self.number_of_answers(options)
        copied = super().with_options(**{name: value for name, value in options.items() if name != "n"})
        copied.n = n
        return copied

    def warm_up(self) -> None:
        """See `DeepenAdapter.warm_up`; raises LangChain's errors."""
        with langchain_errors():
            super().warm_up()

    def identifying_params(self) -> dict[str, Any]:
        """Returns everything that affects an answer, as plain JSON. `stop` is LangChain's name for a call's strings."""
        sampling = self.sampling({}).model_dump(mode="json")
        sampling["default_stop"] = sampling.pop("stop")
        return {**self.loading().model_dump(mode="json"), **sampling, "n": self.n}

    def stop_strings(self, stop: Sequence[str] | None) -> list[str]:
        """Returns the stop strings of a call for its trace: the call's own, or else the model's."""
        return list(self.stop if stop is None else stop)

    def token_ids(self, text: str, tokenizer: Callable[[str], list[int]] | None) -> list[int]:
        """Returns the ids of a text by the user's own tokenizer if there is one, or else by the main member's."""
        return self.ensemble.tokenize(text) if tokenizer is None else tokenizer(text)

    def token_count(self, prompt: Prompt, tokenizer: Callable[[str], list[int]] | None) -> int:
        """Counts a prompt by the user's own tokenizer if there is one and the prompt is a text.

        Otherwise by the member whose window it fills most, in the scale of main's window.
        """
        if tokenizer is not None and isinstance(prompt, str):
            return len(tokenizer(prompt))
        with langchain_errors():
            return self.budget.count(prompt, self.sampling({}))
