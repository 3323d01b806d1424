"""What the text model and the chat model for LangChain share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import model_validator

from deepen_core.errors import ConfigurationError
from deepen_integrations.adapter import DeepenAdapter
from deepen_integrations.langchain.errors import langchain_errors

_SERVER_OPTIONS = frozenset({"api_key", "max_retries"})
"""Options that LangChain users pass to every model. There is no server here, so they are accepted and ignored."""


class LangChainAdapter(DeepenAdapter):
    """An ensemble's options under LangChain's names."""

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        """Accepts what `save` writes, and the options that LangChain users pass to every model."""
        if not isinstance(values, dict):
            return values
        values = {name: value for name, value in values.items() if name not in _SERVER_OPTIONS}
        if "default_stop" in values:
            if "stop" in values:
                raise ConfigurationError("Give either stop or default_stop, its name in saved options, not both.")
            values["stop"] = values.pop("default_stop")
        return values

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
