"""The public facts about prompts: their tokens, the room that they have, and the thoughts before answers to them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from deepen_core.chat.messages import Prompt, check_messages, check_unicode
from deepen_core.chat.thoughts import Thinking, Thoughts
from deepen_core.config import SamplingParams
from deepen_core.engine.engine import Engine
from deepen_core.members.context_budget import ContextBudget
from deepen_core.members.sequence import MemberSequence


class PromptFacts(ABC):
    """Tells what the members make of prompts; no model is run."""

    @abstractmethod
    def _opened(self) -> Engine:
        """Returns the engine.

        Raises:
            ClosedError: If the ensemble was closed.
        """

    def tokenize(self, text: str) -> list[int]:
        """Returns main's ids of a text, without BOS; control tokens in it are read as plain text.

        Raises:
            PromptError: If it is not a text, or holds a lone surrogate.
        """
        check_unicode(text, "The text")
        return self._opened().main_member.tokenizer.encode(text)

    def token_ends(self, text: str) -> list[int]:
        """Returns where each of main's tokens of a text, as in `tokenize`, ends in it, in characters.

        Raises:
            PromptError: If it is not a text, or holds a lone surrogate.
        """
        check_unicode(text, "The text")
        return self._opened().main_member.tokenizer.backend.token_ends(text)

    def count_tokens(self, prompt: Prompt) -> int:
        """Counts main's tokens of a text, without BOS, or of a conversation as rendered by main's template.

        `budget.count` counts for all members.

        Args:
            prompt: A text, or messages; the beginning of the assistant's answer in the template is counted too.

        Raises:
            ChatTemplateError: If messages are given, and main has no chat template or it refuses them.
            PromptError: If they are not a conversation.
        """
        if isinstance(prompt, str):
            return len(self.tokenize(prompt))
        tokenizer = self._opened().main_member.tokenizer
        read = tokenizer.reader.read_messages(check_messages(prompt))
        return MemberSequence(read, tokenizer, is_main=True).prompt_tokens

    @property
    def main_name(self) -> str:
        """The name of the main member."""
        return self._opened().main_member.name

    @property
    def has_chat_template(self) -> bool:
        """Whether every member that takes part can read a conversation."""
        return self.budget.has_chat_template

    @property
    def thinking(self) -> Thinking:
        """Whether answers to a conversation begin with thoughts, by main's chat template.

        "opened": they do, and the template itself writes the mark before them, such as `<think>`. "optional": the model
        may think, and then writes that mark itself. "never": the model does not think, or has no chat template.
        """
        return self.thoughts().mode

    def thoughts(self, params: SamplingParams | None = None) -> Thoughts:
        """Returns whether answers to a conversation begin with thoughts, and the marks around them.

        Args:
            params: Options of the request: `reasoning` and `chat_template_kwargs` can turn thoughts on and off.

        Raises:
            SamplingError: If main's chat template cannot do what `reasoning` asks for.
        """
        reader = self._opened().main_member.tokenizer.reader
        return reader.thoughts(None if params is None else reader.variables(params))

    @property
    def budget(self) -> ContextBudget:
        """How much of a prompt fits all members that take part."""
        return self._opened().budget

    @property
    def context_window(self) -> int:
        """Size of the smallest context window of the members that take part, in tokens."""
        return self.budget.context_window

    @property
    def planning_window(self) -> int:
        """How many of main's tokens a prompt's text and its answer may have together to fit into every member.

        Less than `context_window`: chat templates add tokens of their own, and a member may need more tokens than main
        for the same text. Both are measured, the latter on prose in Latin letters, code and tables.
        """
        return self.budget.planning_window
