"""One call of a chat model: a conversation, the form of its answer, and what the engine needs of both."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from typing_extensions import Self

from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams
from deepen_core.engine.preparation import characters
from deepen_core.replies import ReplyForm, ReplyParser, instructed

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.chat.messages import Message, Prompt

T = TypeVar("T")

_LONG, _LARGE = 20_000, 4_000  # characters of a conversation, and of options: from then on, in a thread
_FORM_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "strict")
"""A call's options that determine the form of its answer, in OpenAI's format."""


class PreparedChat(NamedTuple):
    """A chat request for one ensemble."""

    prompt: Prompt
    params: SamplingParams
    parser: ReplyParser
    """Splits the answer into its parts. It holds state: one parser reads one answer."""


@dataclass(frozen=True)
class ChatRequest:
    """A conversation, and the form and the sampling options of its answer."""

    messages: Sequence[Message]
    """In OpenAI's format: roles, texts, tool calls and their results."""
    form: ReplyForm
    sampling: SamplingParams
    """The caller's options."""

    @classmethod
    def from_options(
        cls,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        sampling: Callable[[Mapping[str, Any]], SamplingParams],
    ) -> Self:
        """Reads a call's options and checks them as far as possible before an ensemble is loaded.

        Args:
            messages: The conversation.
            options: `tools`, `tool_choice`, `parallel_tool_calls` and `response_format` in OpenAI's format; `strict`,
                whether decoding must follow all of every schema; and sampling options.
            sampling: Resolves the sampling options.

        Raises:
            SamplingError: For a wrong option, a schema that decoding cannot follow, or a constraint that contradicts
                the form.
        """
        form = ReplyForm.from_openai(*(options.get(name) for name in _FORM_OPTIONS))
        others = {name: value for name, value in options.items() if name not in _FORM_OPTIONS}
        request = cls(messages, form, sampling(others))
        params = form.params(request.sampling, Thoughts())
        if params.constraint is not None:
            from deepen_core.constraints.grammar import grammar_of  # noqa: PLC0415  needs an extra

            grammar_of(params)
        return request

    def prepare(self, ensemble: Ensemble, join: Callable[[list[Message]], str] | None = None) -> PreparedChat:
        """Returns everything that one call of the engine needs.

        Args:
            ensemble: Answers the request.
            join: Makes one text of the conversation, in place of the members' own chat templates.

        Raises:
            SamplingError: If the caller's constraint contradicts the form.
        """
        prompt, thoughts = instructed(self.messages, self.form), ensemble.thoughts(self.sampling)
        if join is not None and thoughts.mode == "opened":
            thoughts = replace(thoughts, mode="optional")  # only the chat template would have written the mark
        params = self.form.params(self.sampling, thoughts)
        # A constrained answer follows its constraint from the first character, so there are no thoughts before it.
        parser = self.form.parser(Thoughts() if self.sampling.constraint else thoughts, self.sampling)
        return PreparedChat(prompt if join is None else join(prompt), params, parser)


def new_call_id() -> str:
    """Returns an id for a tool call, which models do not write."""
    return f"call_{uuid.uuid4().hex}"


def beside_the_loop(
    contents: Sequence[object], options: Mapping[str, Any]
) -> Callable[[Callable[[], T]], Awaitable[T]]:
    """Returns how to run work on a request of an event loop, so that others of the loop go on.

    Args:
        contents: Of its messages.
        options: Its options.

    Returns:
        Awaits a piece of work: in a thread if the conversation is long or a schema is large, else where it is.
    """
    if characters(list(contents), _LONG) >= _LONG or characters(options, _LARGE) >= _LARGE:
        return asyncio.to_thread
    return _here


async def _here(work: Callable[[], T]) -> T:
    return work()
