"""What the text and the chat model for LangChain share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import model_validator

from deepen_core.errors import ConfigurationError
from deepen_integrations.adapter import DeepenAdapter

_SERVER_OPTIONS = frozenset({"api_key", "max_retries"})
"""What users of LangChain set for every model. Without a server they mean nothing: they are taken and forgotten."""


class LangChainOptions(DeepenAdapter):
    """An ensemble's options under the names that LangChain knows, and how it is told of them."""

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        """Takes what `save` writes, and what LangChain's users set for every model."""
        if not isinstance(values, dict):
            return values
        values = {name: value for name, value in values.items() if name not in _SERVER_OPTIONS}
        if "default_stop" in values:
            if "stop" in values:
                raise ConfigurationError("Give stop or default_stop, its name in saved options, not both.")
            values["stop"] = values.pop("default_stop")
        return values

    def identifying_params(self) -> dict[str, Any]:
        """Everything that changes an answer, as plain JSON; LangChain calls a call's own strings `stop`."""
        sampling = self.sampling({}).model_dump(mode="json")
        sampling["default_stop"] = sampling.pop("stop")
        return {**self.loading().model_dump(mode="json"), **sampling}

    def told_stop(self, stop: Sequence[str] | None) -> list[str]:
        """The stop strings of a call, for traces: its own, or else the model's."""
        return list(self.stop if stop is None else stop)

    def main_ids(self, text: str, tokenizer: Callable[[str], list[int]] | None) -> list[int]:
        """Ids of a text by a tokenizer of the user's own, or by the main member's."""
        return self.ensemble.tokenize(text) if tokenizer is None else tokenizer(text)
