"""What the text model and the chat model for LangChain share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.runnables.utils import AnyConfigurableField
from pydantic import model_validator

from deepen_core.chat.messages import Prompt
from deepen_core.errors import ConfigurationError
from deepen_integrations.adapter import DeepenAdapter
from deepen_integrations.langchain.errors import langchain_errors


class LangChainAdapter(DeepenAdapter):
    """An ensemble's options under LangChain's names."""

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        """Accepts what `save` writes."""
        if isinstance(values, dict) and "default_stop" in values:
            values = dict(values)
            if "stop" in values:
                raise ConfigurationError("Give either stop or default_stop, its name in saved options, not both.")
            values["stop"] = values.pop("default_stop")
        return values

    def own_names(self, fields: Mapping[str, AnyConfigurableField]) -> dict[str, AnyConfigurableField]:
        """Returns configurable fields under the names that options have here: LangChain looks for these."""
        return {"max_new_tokens" if name == "max_tokens" else name: field for name, field in fields.items()}

    def warm_up(self) -> None:
        """See `DeepenAdapter.warm_up`; raises LangChain's errors."""
        with langchain_errors():
            super().warm_up()

    def identifying_params(self) -> dict[str, Any]:
        """Returns everything that affects an answer, as plain JSON. `stop` is LangChain's name for a call's strings."""
        sampling = self.sampling({}).model_dump(mode="json")
        sampling["default_stop"] = sampling.pop("stop")
        return {**self.loading().model_dump(mode="json"), **sampling}

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
            return self.budget.count(prompt, self.sampling({}).chat_template_kwargs)
