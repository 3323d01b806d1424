"""A conversation with an ensemble: what was said, and with which options the next answer is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepen_core.config import resolve_sampling
from deepen_integrations.cli.answers import StreamedAnswer
from deepen_integrations.cli.session import json_or_text, on_or_off, unescaped
from deepen_integrations.option_names import known_options

if TYPE_CHECKING:
    from deepen_core import Ensemble


class Conversation:
    """Asks questions, writes the answers and keeps both.

    Args:
        ensemble: The ensemble that answers.
        sampling: Options of every answer.
        system: An instruction that precedes the conversation.
        stats: Say after every answer how fast it was.

    Attributes:
        ensemble: As given.
        system: As given; it may be replaced, and holds for the next answer.
        stats: As given; it may be changed.
    """

    def __init__(
        self, ensemble: Ensemble, sampling: Mapping[str, Any], system: str | None = None, *, stats: bool = False
    ) -> None:
        self.ensemble = ensemble
        self.system = system
        self.stats = stats
        self._sampling = dict(sampling)
        self._said: list[dict[str, Any]] = []

    @property
    def options(self) -> dict[str, Any]:
        """The sampling options that are not at their defaults."""
        return dict(self._sampling)

    def ask(self, question: str) -> None:
        """Asks a question.

        The conversation keeps the text of an interrupted answer, and nothing of a failed one.

        Raises:
            DeepenError: If it cannot be answered.
            KeyboardInterrupt: If the user interrupts the answer.
        """
        self._answer([*self._said, {"role": "user", "content": question}])

    def regenerate(self) -> bool:
        """Asks the last question again, in place of its answer. Raises as `ask`, and then keeps the answer.

        Returns:
            False if there is no answer yet.
        """
        if not self._said:
            return False
        self._answer(self._said[:-1])
        return True

    def clear(self) -> None:
        """Forgets what was said, but not the instruction."""
        self._said = []

    def set_option(self, name: str, text: str) -> str:
        """Sets a sampling option for the next answers.

        Args:
            name: Its name, or that which other programs have for it.
            text: Its value as it is typed: JSON, or a text; empty for the default.

        Returns:
            The option's own name.

        Raises:
            SamplingError: For an unknown option or a value outside its range.
        """
        name = name.replace("-", "_")
        value = on_or_off(text) if name == "reasoning" else json_or_text(text)
        value = unescaped(value) if isinstance(value, str) else value
        given = known_options({{"max_tokens": "max_new_tokens"}.get(name, name): value if text else "default"})
        known = next(iter(given), name)
        if text and given:
            resolve_sampling(None, {**self._sampling, **given})
            self._sampling.update(given)
        else:
            self._sampling.pop(known, None)
        return known

    @property
    def is_repeatable(self) -> bool:
        """Whether the same question gives the same answer again."""
        return not self._sampling.get("temperature") or self._sampling.get("seed") is not None

    def _answer(self, asked: list[dict[str, Any]]) -> None:
        opening = [{"role": "system", "content": self.system}] if self.system else []
        answer = StreamedAnswer(stats=self.stats, trim=True)
        try:
            answer.show(self.ensemble.stream([*opening, *asked], **self._sampling))
        except KeyboardInterrupt:
            if answer.text:
                self._keep(asked, answer.text)
            raise
        self._keep(asked, answer.text)

    def _keep(self, asked: list[dict[str, Any]], text: str) -> None:
        self._said = [*asked, {"role": "assistant", "content": text.strip()}]
