"""From what a caller gives to the ids that one member starts from.

A prompt becomes ids that are settled (BOS, everything up to the last control token of a chat template) and an open
text that generation continues; both are the member's own. What a user wrote never turns into a control token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepen_core.backend import Backend
from deepen_core.errors import ChatTemplateError, PromptError

Message = Mapping[str, Any]

# A Unicode noncharacter: it keeps control tokens in user text from being read as such, and is taken out again.
_BREAK = "\ufdd0"


@dataclass(frozen=True)
class MemberPrompt:
    """Where one member starts."""

    ids: list[int]
    """Settled ids before the open text."""
    text: str
    """The open text; generation continues it."""
    inside: bool
    """Whether the open text follows a control token other than BOS."""


class PromptReader:
    """Reads prompts for one member.

    Args:
        tokenizer: The member's `transformers` tokenizer, for its chat template and its BOS.
        backend: The tokenizer's private copy.
        name: The member's name, for messages.
    """

    def __init__(self, tokenizer: Any, backend: Backend, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        template = tokenizer.chat_template
        self.has_chat_template = template is not None
        text = template if isinstance(template, str) else " ".join((template or {}).values())
        added = tokenizer.added_tokens_decoder
        self._control = {
            token.content: token_id
            for token_id, token in added.items()
            if token.special or (token.content in text and not token.content.isspace())
        }
        longest_first = sorted(self._control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._plain = backend
        special = {t["content"] for t in backend.added_tokens if t["special"]}
        more = frozenset(self._control) - special
        self._strict = Backend(tokenizer, more) if more else backend
        self._start_ids = self._read_start_ids()

    def _read_start_ids(self) -> list[int]:
        """The ids that the tokenizer puts before every text."""
        full, bare = list(self._tokenizer("a")["input_ids"]), self._plain.encode("a")
        for place in range(len(full) - len(bare) + 1):
            if full[place : place + len(bare)] == bare:
                return full[:place]
        return []

    def read_text(self, text: str) -> MemberPrompt:
        """A text to be continued.

        Raises:
            PromptError: If the text is empty and the tokenizer has no BOS token to start from.
        """
        ids = self._start_ids
        if not text and not ids:
            bos = self._tokenizer.bos_token_id
            if bos is None:
                raise PromptError(
                    f"The prompt is empty and member {self._name!r} has no BOS token to start from: give at least one "
                    "character, or a model with a BOS token."
                )
            ids = [bos]
        return MemberPrompt(list(ids), text, inside=False)

    def read_messages(self, messages: Sequence[Message]) -> MemberPrompt:
        """A conversation, rendered by the member's own chat template and ready for the assistant's answer.

        Raises:
            ChatTemplateError: If there is no template, or it refuses the messages.
        """
        if not self.has_chat_template:
            raise ChatTemplateError(
                f"Member {self._name!r} has no chat template, so it cannot read a conversation: give a plain text, use "
                "an instruction-tuned model, or put a template into its folder (chat_template.jinja)."
            )
        try:
            rendered = self._tokenizer.apply_chat_template(
                [self._shielded(m) for m in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as problem:  # templates are programs of their own and raise whatever they like
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise ChatTemplateError(
                f"The chat template of member {self._name!r} refuses these messages (roles: {roles}): {problem}"
            ) from problem
        return self._read_rendered(str(rendered))

    def _shielded(self, value: Any) -> Any:
        """A copy of a message in which no string holds a whole control token."""
        if isinstance(value, str):
            clean = value.replace(_BREAK, "")
            return self._pattern.sub(lambda found: found[0][:1] + _BREAK + found[0][1:], clean)
        if isinstance(value, Mapping):
            return {key: self._shielded(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._shielded(v) for v in value]
        return value

    def _read_rendered(self, rendered: str) -> MemberPrompt:
        ids: list[int] = []
        place = 0
        for found in self._pattern.finditer(rendered):
            ids += self._settled(rendered[place : found.start()], inside=place > 0)
            ids.append(self._control[found[0]])
            place = found.end()
        return MemberPrompt(ids, rendered[place:].replace(_BREAK, ""), inside=place > 0)

    def _settled(self, text: str, *, inside: bool) -> list[int]:
        text = text.replace(_BREAK, "")
        if not text:
            return []
        return self._strict.encode_inside(text) if inside else self._strict.encode(text)


def check_messages(messages: Sequence[Any]) -> list[Message]:
    """Checks the shape of a conversation.

    Raises:
        PromptError: If it is empty or a message has no role.
    """
    if not messages:
        raise PromptError(
            "The conversation is empty: give at least one message such as {'role': 'user', 'content': 'hi'}."
        )
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(
                f"Message {number} is {message!r}: each message is a mapping with 'role' and 'content', such as "
                "{'role': 'user', 'content': 'hi'}."
            )
    return list(messages)
