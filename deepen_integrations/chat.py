"""One call of a chat model: a conversation, tools, and what the answer has to look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepen_core.config import SamplingParams
from deepen_core.replies import ReplyForm, ReplyParser, instructed

if TYPE_CHECKING:
    from deepen_core.chat.messages import Message
    from deepen_core.chat.template import Thinking

FORM_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
"""Options of a call that say what its answer has to look like."""


@dataclass(frozen=True)
class ChatRequest:
    """What is asked, checked as far as it can be before an ensemble is loaded."""

    messages: Sequence[Message]
    """In OpenAI's form: roles, texts, calls of tools and what came of them."""
    form: ReplyForm
    sampling: SamplingParams
    """The caller's options."""

    def check(self) -> None:
        """Says what is wrong with the request, as far as that can be told before an ensemble is loaded.

        Raises:
            SamplingError: If a schema or another constraint cannot be followed, or the caller has constrained the
                answer in a way that contradicts the form.
        """
        params = self.params("never")
        if params.constraint is not None:
            from deepen_core.constraints.grammar import grammar_of  # noqa: PLC0415  needs an extra

            grammar_of(params)

    def prompt(self) -> list[Message]:
        """The conversation as every member reads it."""
        return instructed(self.messages, self.form)

    def params(self, thinking: Thinking) -> SamplingParams:
        """The options of the engine.

        Args:
            thinking: Whether the answer to the prompt, as it is rendered, begins with thoughts.

        Raises:
            SamplingError: If the caller has constrained the answer in a way that contradicts the form.
        """
        return self.form.params(self.sampling, thinking)

    def parser(self, thinking: Thinking) -> ReplyParser:
        """What tells the parts of the answer apart.

        Args:
            thinking: As for `params`.
        """
        # An answer that the caller has constrained is what the constraint says from its first character on.
        return self.form.parser("never" if self.sampling.constraint else thinking)


def read_form(options: dict[str, Any]) -> ReplyForm:
    """Takes out of a call's options those that say what its answer has to look like.

    Args:
        options: They are removed from it.

    Raises:
        SamplingError: If they are of another form than OpenAI's.
    """
    tools, choice, parallel, response_format = (options.pop(name, None) for name in FORM_OPTIONS)
    return ReplyForm.from_openai(tools, choice, parallel, response_format)
