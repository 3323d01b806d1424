"""From what a caller gives to the ids that one member starts from.

A prompt becomes ids that are settled (BOS, everything up to the last control token of a chat template) and an open
text that generation continues; both are the member's own. No message of a conversation turns into a control token;
only what an assistant said may hold those that are not special (`<think>`), since templates look for them there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from deepen_core.backend import Backend
from deepen_core.conversation import Message, check_unicode
from deepen_core.errors import ChatTemplateError, PromptError

# Unicode noncharacters, put into messages before a template sees them and taken out of what it renders.
_BREAK = "\ufdd0"  # splits a control token
_MARK = "\ufdd1"  # says that the next character is text; a control token of one character cannot be split
_OURS = str.maketrans("", "", _BREAK + _MARK)

# Fields that templates compare with names of their own.
_NAMES = frozenset({"role", "type"})

# What `\s` is to the tokenizers library.
_SPACE_BEFORE, _SPACE_AFTER = re.compile(r"[^\S\x1c-\x1f]*\Z"), re.compile(r"[^\S\x1c-\x1f]*")


@dataclass(frozen=True)
class MemberPrompt:
    """Where one member starts."""

    ids: list[int]
    """Settled ids before the open text."""
    text: str
    """The open text; generation continues it."""
    inside: bool
    """Whether the open text follows a control token that a chat template wrote, BOS included; else it starts a text."""
    backend: Backend | None = None
    """Encodes the open text and what follows, where that is not the member's usual one."""


class _Shield:
    """Keeps strings from holding any of some tokens, and from making one up where a template joins them."""

    def __init__(self, tokens: Iterable[str]) -> None:
        tokens = list(tokens)
        self._starts = re.compile(f"(?={_any_of(t for t in tokens if len(t) > 1)}).", re.DOTALL)
        self._single = re.compile(_any_of(t for t in tokens if len(t) == 1))
        self._openings = {t[:i].rstrip() for t in tokens for i in range(1, len(t))} - {""}
        self._endings = {t[i:].lstrip() for t in tokens for i in range(1, len(t))} - {""}
        self._longest = max(map(len, tokens), default=0)

    def split(self, text: str) -> str:
        """The text with every token in it split."""
        marked = self._single.sub(lambda found: _MARK + found[0], text.translate(_OURS))
        return self._starts.sub(lambda found: found[0] + _BREAK, marked)

    def close(self, text: str) -> str:
        """As `split`, and nothing before or behind the text makes a token of its first or last part.

        The breaks stand inside of white space at the ends, which templates trim.
        """
        core = text.translate(_OURS).strip()
        whole = self.split(text)
        lead, tail = len(whole) - len(whole.lstrip()), len(whole.rstrip())
        parts = range(1, self._longest)
        first = _BREAK if any(core[:n] in self._endings for n in parts) else ""
        last = _BREAK if core and any(core[-n:] in self._openings for n in parts) else ""
        return whole[:lead] + first + whole[lead:tail] + last + whole[tail:] if core else whole


def _any_of(tokens: Iterable[str]) -> str:
    """A pattern for the longest of some tokens that stands at a place; without tokens it matches nowhere."""
    return "(?:" + ("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)") + ")"


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
        self._template = _default_template(tokenizer.chat_template)
        self.has_chat_template = self._template is not None
        named = getattr(tokenizer, "chat_control_tokens", None) or ()
        special = backend.control_ids(tokenizer)
        self._control = {
            token.content: (token_id, token)
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token_id in special
            or (
                (not token.special and not token.content.isspace())
                and (token.content in named or token.content in (self._template or ""))
            )
        }
        unmarked = frozenset(t for t, (token_id, _) in self._control.items() if token_id not in special)
        self._pattern = re.compile(f"(?<!{_MARK}){_any_of(self._control)}")
        self._unmarked = re.compile(_any_of(unmarked))
        self._shield = _Shield(self._control)
        self._special_shield = _Shield(set(self._control) - unmarked)
        self._plain = backend
        self._strict = Backend(tokenizer, unmarked) if unmarked else backend
        self._start_ids = self._read_start_ids()

    def _read_start_ids(self) -> list[int]:
        """The ids that the tokenizer puts before every text."""
        for probe in self._probes():
            full, bare = list(self._tokenizer(probe)["input_ids"]), self._plain.encode(probe)
            for place in range(len(full) - len(bare) + 1 if bare else 0):
                if full[place : place + len(bare)] == bare:
                    return full[:place]
        return []

    def _probes(self) -> Iterator[str]:
        yield "a"
        yield from islice(self._plain.pieces, 1000)  # a vocabulary without Latin letters

    def read_text(self, text: str) -> MemberPrompt:
        """A text to be continued.

        Raises:
            PromptError: If the text has no tokens and the tokenizer has no BOS token to start from, or if it holds a
                lone surrogate.
        """
        check_unicode(text, "The prompt")
        return self._started(MemberPrompt(list(self._start_ids), text, inside=False))

    def _started(self, prompt: MemberPrompt) -> MemberPrompt:
        """The prompt, from BOS on if it has no ids at all."""
        if prompt.ids or (prompt.text and self._plain.encode(prompt.text)):
            return prompt
        bos = self._tokenizer.bos_token_id
        if bos is None:
            what = f"has no tokens ({prompt.text[:20]!r} is nothing to its tokenizer)" if prompt.text else "is empty"
            raise PromptError(
                f"The prompt {what} and member {self._name!r} has no BOS token to start from: give at least one "
                f"{'other ' if prompt.text else ''}character, or a model with a BOS token."
            )
        return replace(prompt, ids=[bos])

    def read_messages(self, messages: Sequence[Message]) -> MemberPrompt:
        """A conversation, rendered by the member's own chat template and ready for the assistant's answer.

        Raises:
            ChatTemplateError: If there is no template, or it refuses the messages.
            PromptError: If the rendered conversation has no tokens, and the tokenizer has no BOS token.
        """
        if not self.has_chat_template:
            raise ChatTemplateError(
                f"Member {self._name!r} has no chat template, so it cannot read a conversation: give a plain text, use "
                "an instruction-tuned model, or put a template into its folder (chat_template.jinja)."
            )
        try:
            rendered = self._tokenizer.apply_chat_template(
                [self._shielded(m, self._special_shield if m.get("role") == "assistant" else None) for m in messages],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as problem:  # templates are programs of their own and raise whatever they like
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise ChatTemplateError(
                f"The chat template of member {self._name!r} refuses these messages (roles: {roles}): {problem}"
            ) from problem
        return self._started(self._read_rendered(str(rendered)))

    def _shielded(self, value: Any, shield: _Shield | None = None) -> Any:
        """A copy of a message whose strings cannot put a control token into what a template renders."""
        shield = shield or self._shield
        if isinstance(value, str):
            return shield.close(value)
        if isinstance(value, Mapping):
            return {
                self._shielded_key(key, shield): self._special_shield.split(v)
                if key in _NAMES and isinstance(v, str)
                else self._shielded(v, shield)
                for key, v in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._shielded(v, shield) for v in value]
        return value

    def _shielded_key(self, key: Any, shield: _Shield) -> Any:
        """Plain words may be fields that the template looks up, so only special tokens are split in such keys."""
        if not isinstance(key, str):
            return key
        return self._special_shield.split(key) if key.isidentifier() else shield.close(key)

    def _read_rendered(self, rendered: str) -> MemberPrompt:
        """The ids of a rendered chat, its control tokens read as `transformers` reads them."""
        ids: list[int] = []
        place = 0
        for found in self._pattern.finditer(rendered):
            token_id, token = self._control[found[0]]
            start, end = found.span()
            if token.single_word and re.search(r"\w", rendered[start - 1 : start] + rendered[end : end + 1]):
                continue
            if token.lstrip:
                start = _SPACE_BEFORE.search(rendered, place, start).start()  # type: ignore[union-attr]
            if token.rstrip:
                end = _SPACE_AFTER.match(rendered, end).end()  # type: ignore[union-attr]
            ids += self._settled(rendered[place:start], inside=place > 0)
            ids.append(token_id)
            place = end
        text = rendered[place:].translate(_OURS)
        backend = self._strict if self._unmarked.search(text) else None
        return MemberPrompt(ids, text, inside=place > 0, backend=backend)

    def _settled(self, text: str, *, inside: bool) -> list[int]:
        text = text.translate(_OURS)
        if not text:
            return []
        return self._strict.encode_inside(text) if inside else self._strict.encode(text)


def _default_template(template: Any) -> str | None:
    """The template for plain conversations, of one or of several that are given by name."""
    if isinstance(template, (list, tuple)):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, Mapping):
        template = template.get("default") or (next(iter(template.values())) if len(template) == 1 else None)
    return None if template is None else str(template)
