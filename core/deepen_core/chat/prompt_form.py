"""What one member is shown of a prompt, where that is not the prompt itself: the form that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

from deepen_core.chat.messages import Message, Prompt, check_messages
from deepen_core.config.prompts import CHAT, PROMPT, FormOption, is_template
from deepen_core.errors import PromptError, brief


@dataclass(frozen=True)
class PromptForm:
    """The form in which one member is shown every prompt.

    Attributes:
        option: See `FormOption`; None shows prompts as they are.
        system: An instruction that only this member reads, before a conversation.
        name: The member's name, for error messages.
    """

    option: FormOption | None = None
    system: str | None = None
    name: str = ""

    @property
    def is_template(self) -> bool:
        """Whether the member is shown a text in place of a conversation."""
        return is_template(self.option)

    @property
    def label(self) -> str:
        """What it is, in the same words in every process."""
        option = self.option or PROMPT
        if callable(option):
            option = f"{option.__module__}.{getattr(option, '__qualname__', type(option).__qualname__)}"
        return option if self.system is None else f"{option} after {self.system!r}"

    @property
    def ends_with_prompt(self) -> bool:
        """Whether what the member is shown of a text ends where the text does."""
        return self.option is None or (isinstance(self.option, str) and self.option.endswith(PROMPT))

    def shown(self, prompt: Prompt) -> Prompt:
        """Returns what the member is shown.

        Args:
            prompt: A text, or a conversation that was checked.

        Raises:
            PromptError: If a function fails, or returns something else than a prompt.
        """
        if self.option is None:
            return self._instructed(prompt)
        if callable(self.option):
            return self._instructed(self._made(self.option, prompt))
        text = prompt if isinstance(prompt, str) else text_of(prompt[-1])
        if self.option == CHAT:
            return self._instructed([{"role": "user", "content": text}] if isinstance(prompt, str) else prompt)
        return self.option.replace(PROMPT, text)

    def _made(self, function: Callable[[Prompt], Prompt], prompt: Prompt) -> Prompt:
        try:
            found = function(deepcopy(prompt))  # all members are given the same messages
        except Exception as problem:
            raise PromptError(f"The prompt function of member {self.name!r} failed: {brief(problem)}.") from problem
        return found if isinstance(found, str) else check_messages(found)

    def _instructed(self, prompt: Prompt) -> Prompt:
        """Puts the member's own instruction before a conversation, or before the instruction that it has."""
        if self.system is None or isinstance(prompt, str):
            return prompt
        first, rest = prompt[0], list(prompt[1:])
        if first["role"] in ("system", "developer"):
            return [{**first, "content": f"{self.system}\n\n{text_of(first)}"}, *rest]
        return [{"role": "system", "content": self.system}, first, *rest]


def text_of(message: Message) -> str:
    """Returns the texts of a message that was checked, joined."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)
