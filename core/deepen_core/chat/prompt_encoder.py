"""Encodes a caller's prompt to the ids that one member starts from.

A prompt becomes ids that are final (BOS, everything up to the last control token of a chat template) and an open text
that generation continues; both are specific to the member. No message of a conversation can become a control token,
except that assistant messages may contain those that are not special (`<think>`), since templates look for them there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any

from deepen_core.chat.escaping import Shield, any_of, unmarked_of, unshielded
from deepen_core.chat.messages import Message, TextStart, begun_answer, check_unicode
from deepen_core.chat.prompt_form import PromptForm
from deepen_core.chat.template import ChatTemplate, default_template
from deepen_core.chat.thoughts import Thoughts
from deepen_core.chat.tool_format import TOOL_TAGS
from deepen_core.config import SamplingParams
from deepen_core.config.prompts import CHAT
from deepen_core.config.sampling import ANSWER_TOKENS, THINKING_TOKENS
from deepen_core.errors import ChatTemplateError, ContextWindowError, PromptError, SamplingError
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.token_bound import characters_a_token

_TAGS = frozenset({"<think>", "</think>", *TOOL_TAGS})
"""Tags that the text of an assistant may contain, even if a template writes them too."""
# What `\s` means in the tokenizers library.
_SPACE = re.compile(r"[^\S\x1c-\x1f]")


@dataclass(frozen=True)
class MemberPrompt:
    """Where one member starts."""

    ids: list[int]
    """Final ids before the open text."""
    text: str
    """The open text; generation continues it."""
    inside: bool
    """Whether the open text follows a control token (BOS included) from a chat template; else it starts a text."""
    backend: Backend | None = None
    """Encodes the open text and its continuation, if not the member's usual tokenizer."""
    cut: bool = False
    """Whether the open text may end anywhere, as in the middle of a word, since a caller has written its end."""
    source: tuple[int, ...] | None = None
    """The prompt's ids for the encoder of an encoder-decoder model, whose answer is a text of its own; else None."""


def no_template(names: Sequence[str]) -> ChatTemplateError:
    """Returns the error for members that would have to read a conversation, and have no chat template.

    Args:
        names: At least one.
    """
    if len(names) == 1:
        return ChatTemplateError(
            f"Member {names[0]!r} has no chat template, so it cannot read a conversation: give a plain text, use an "
            "instruction-tuned model, or give it a template: chat_template.jinja in its folder, or "
            "MemberConfig(chat_template=...)."
        )
    return ChatTemplateError(
        f"Members {' and '.join(map(repr, names))} have no chat template, so they cannot read a conversation: give a "
        "plain text, use instruction-tuned models, or give each a template: chat_template.jinja in its folder, or "
        "MemberConfig(chat_template=...)."
    )


class PromptReader:
    """Reads prompts for one member.

    Args:
        tokenizer: The member's `transformers` tokenizer, for its chat template and its BOS.
        backend: The tokenizer's private copy.
        name: The member's name, for error messages.
        form: In which the member is shown prompts. With a template for texts it needs no chat template.

    Attributes:
        start_ids: What the tokenizer puts before every text, such as BOS.
    """

    def __init__(self, tokenizer: Any, backend: Backend, name: str, form: PromptForm | None = None) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._form = PromptForm(name=name) if form is None else form
        template = None if self._form.is_template else default_template(tokenizer.chat_template)
        named = {*(getattr(tokenizer, "chat_control_tokens", None) or ()), *TOOL_TAGS}
        special = backend.control_ids(tokenizer)
        self._control = {
            token.content: (token_id, token)
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token_id in special
            or (
                (not token.special and not token.content.isspace())
                and (token.content in named or token.content in (template or ""))
            )
        }
        unmarked = self._visible = frozenset(t for t, (token_id, _) in self._control.items() if token_id not in special)
        self._unmarked = re.compile(any_of(unmarked))
        # Some tokenizers do not mark as special the tokens with which the template delimits turns.
        frame = "" if template is None else ChatTemplate(tokenizer, template, name, dict).frame
        inner = frozenset(token for token in unmarked if token in _TAGS or token not in frame)
        shield = Shield(set(self._control) - inner, inner)
        self._turns = re.compile(any_of(token for token in self._control if token in frame and token not in inner))
        self._chat = None if template is None else ChatTemplate(tokenizer, template, name, shield.shielded)
        if self._chat is None and self._form.option == CHAT:
            raise no_template([name])
        self._plain = backend
        self._strict = Backend(tokenizer, unmarked) if unmarked else backend
        self.start_ids, self._end_ids = self._read_affixes()
        self._characters_a_token = characters_a_token(backend)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Finds control tokens; compiled for the first conversation, since some tokenizers have thousands."""
        return re.compile(unmarked_of(self._control))

    def _read_affixes(self) -> tuple[list[int], list[int]]:
        """Returns the ids that the tokenizer puts before and after every text."""
        for probe in self._probes():
            full, bare = list(self._tokenizer(probe)["input_ids"]), self._plain.encode(probe)
            for place in range(len(full) - len(bare) + 1 if bare else 0):
                if full[place : place + len(bare)] == bare:
                    return full[:place], full[place + len(bare) :]
        return [], []

    def _probes(self) -> Iterator[str]:
        yield "a"
        yield from islice(self._plain.pieces, 1000)  # a vocabulary without Latin letters

    @property
    def form(self) -> PromptForm:
        """In which the member is shown prompts."""
        return self._form

    @property
    def label(self) -> str:
        """How prompts are read, in the same words in every process."""
        return self._form.label

    @property
    def has_chat_template(self) -> bool:
        """Whether the member can encode a conversation."""
        return self._chat is not None or self._form.is_template or callable(self._form.option)

    def thoughts(self, options: Mapping[str, Any] | None = None) -> Thoughts:
        """Returns whether and how answers to a conversation begin with thoughts.

        Args:
            options: Variables for the chat template.
        """
        if self._chat is None or self._chat.marks is None:
            return Thoughts()
        marks = self._chat.marks
        silent = ((t, i) for t, (i, _) in self._control.items() if t not in self._visible)
        control = {t: i for t, i in silent if any(t in mark for mark in marks.parts())}
        return Thoughts(self._chat.thinking(options), marks, control)

    def most_tokens(self, params: SamplingParams, *, to_text: bool) -> int:
        """Returns the maximum number of tokens of an answer: what the request asks for, or the default for its kind.

        Args:
            params: Options of the request.
            to_text: Whether it is the answer to a text, before which there are no thoughts, or to a conversation.
        """
        if params.max_new_tokens is not None:
            return params.max_new_tokens
        # A caller's own constraint holds from the first character; grammars are also those of calls after thoughts.
        plain = to_text or params.reasoning is False or params.constraint not in {None, "grammar"}
        if plain or self._chat is None or not self._chat.may_think(self.variables(params)):
            return ANSWER_TOKENS
        return THINKING_TOKENS

    def variables(self, params: SamplingParams, *, strict: bool = True) -> dict[str, Any]:
        """Returns the variables for the chat template that a request asks for, by name or as `reasoning`.

        Args:
            params: Options of the request.
            strict: Raise if the template cannot follow `reasoning`; else leave it to the template.

        Raises:
            SamplingError: If the template cannot follow `reasoning`, or the request contradicts itself.
        """
        given = dict(params.chat_template_kwargs or {})
        if params.reasoning is None or self._chat is None:
            return given
        try:
            switched = self._chat.switch.variables(params.reasoning)
        except SamplingError:
            if strict:
                raise
            return given
        for name, value in switched.items():
            if strict and given.get(name, value) != value:
                raise SamplingError(
                    f"reasoning={params.reasoning!r} sets {name} to {value!r}, and chat_template_kwargs to "
                    f"{given[name]!r}: give one of them."
                )
        return {**switched, **given}

    def _check_fits(self, characters: int, window: int | None) -> None:
        """Rejects a text that has more tokens than a window, by its length alone."""
        if window is None or self._characters_a_token is None:
            return
        least = -(-characters // self._characters_a_token)
        if least > window:
            raise ContextWindowError(
                f"The prompt has {characters:,} characters, which are at least {least:,} tokens for member "
                f"{self._name!r}, whose context window is {window:,}: shorten it."
            )

    def read_text(self, text: str, *, control_tokens: bool = False, window: int | None = None) -> MemberPrompt:
        """Encodes a text to be continued.

        Args:
            text: The text.
            control_tokens: Read control tokens in it as such, as `transformers` does; else they are plain text. A BOS
                token at its start is not doubled.
            window: Do not tokenise a text that cannot fit into this many tokens.

        Raises:
            ContextWindowError: If the text cannot fit.
            PromptError: If the text has no tokens and the tokenizer has no BOS token to start from, or if it contains
                a lone surrogate.
        """
        check_unicode(text, "The prompt")
        shown = self._form.shown(text)
        if not isinstance(shown, str):
            return self._read_conversation(shown, None, window)
        self._check_fits(len(shown), window)
        return self._read_shown(shown, cut=self._form.ends_with_prompt, control_tokens=control_tokens)

    def _read_shown(self, text: str, *, cut: bool, control_tokens: bool) -> MemberPrompt:
        if not control_tokens:
            read = MemberPrompt(list(self.start_ids), text, inside=False, cut=cut)
            return self._started(read, after_end=isinstance(text, TextStart))
        read, start = self._read_controlled(text, str), self.start_ids
        if read.ids[: len(start)] != start:
            read = replace(read, ids=[*start, *read.ids])
        return self._started(replace(read, cut=cut and not read.inside))

    def count_text(self, text: str) -> int:
        """Counts the tokens that the member is shown of a text, without those before every text."""
        shown = self._form.shown(text)
        if isinstance(shown, str):
            return len(self._plain.encode(shown))
        read = self._read_conversation(shown, None)
        return len(read.ids) + len((read.backend or self._plain).encode(read.text))

    def turn_token(self, text: str) -> str | None:
        """Returns the first token in a text with which the chat template delimits turns, if there is one."""
        found = self._turns.search(text)
        return found and found[0]

    def _started(self, prompt: MemberPrompt, *, after_end: bool = False) -> MemberPrompt:
        """Returns the prompt, starting with BOS if it would have no ids at all.

        Args:
            prompt: The prompt.
            after_end: Start with EOS where there is no BOS.
        """
        if prompt.ids or (prompt.text and self._plain.encode(prompt.text)):
            return prompt
        bos = self._tokenizer.bos_token_id
        if bos is None and after_end:
            bos = self._tokenizer.eos_token_id
        if bos is None:
            what = f"has no tokens (the tokenizer drops {prompt.text[:20]!r})" if prompt.text else "is empty"
            raise PromptError(
                f"The prompt {what} and member {self._name!r} has no BOS token to start from: give at least one "
                f"{'other ' if prompt.text else ''}character, or a model with a BOS token."
            )
        return replace(prompt, ids=[bos])

    def read_messages(
        self, messages: Sequence[Message], options: Mapping[str, Any] | None = None, window: int | None = None
    ) -> MemberPrompt:
        """Encodes a conversation, rendered by the member's own chat template and ready for the assistant's answer.

        Args:
            messages: The conversation. If the last message is of the assistant and its field `prefix` is true, the
                answer begins with it.
            options: Variables for the template, such as `enable_thinking`.
            window: As for `read_text`.

        Raises:
            ChatTemplateError: If there is no template, or it refuses the messages in every form.
            ContextWindowError: If the rendered conversation cannot fit.
            PromptError: If the rendered conversation has no tokens, and the tokenizer has no BOS token.
        """
        asked, begun = begun_answer(messages)
        shown = self._form.shown(asked)
        if isinstance(shown, str):
            check_unicode(shown, "The prompt")
            self._check_fits(len(shown), window)
            return self._begun(self._read_shown(shown, cut=False, control_tokens=False), begun)
        return self._begun(self._read_conversation(shown, options, window), begun)

    def _begun(self, prompt: MemberPrompt, text: str) -> MemberPrompt:
        """Returns the prompt with the beginning of the answer, in which no control token is read."""
        if not text:
            return prompt
        backend = self._strict if self._unmarked.search(prompt.text + text) else prompt.backend
        return replace(prompt, text=prompt.text + text, backend=backend, cut=True)

    def _read_conversation(
        self, messages: Sequence[Message], options: Mapping[str, Any] | None, window: int | None = None
    ) -> MemberPrompt:
        if self._chat is None:
            raise no_template([self._name])
        rendered = self._chat.render(messages, options, partial(self._check_fits, window=window))
        self._check_fits(len(unshielded(rendered)), window)
        return self._started(self._read_controlled(rendered, unshielded))

    def _read_controlled(self, rendered: str, cleaned: Callable[[str], str]) -> MemberPrompt:
        """Returns the ids of a rendered chat, with control tokens read as `transformers` reads them.

        Args:
            rendered: The chat.
            cleaned: Makes the text between two control tokens what it says.
        """
        ids: list[int] = []
        place = 0
        for found in self._pattern.finditer(rendered):
            token_id, token = self._control[found[0]]
            start, end = found.span()
            if token.single_word and re.search(r"\w", rendered[start - 1 : start] + rendered[end : end + 1]):
                continue
            while token.lstrip and start > place and _SPACE.match(rendered, start - 1):
                start -= 1
            while token.rstrip and _SPACE.match(rendered, end):
                end += 1
            ids += self._settled(cleaned(rendered[place:start]), inside=place > 0)
            ids.append(token_id)
            place = end
        text = cleaned(rendered[place:])
        backend = self._strict if self._unmarked.search(text) else None
        return MemberPrompt(ids, text, inside=place > 0, backend=backend)

    def _settled(self, text: str, *, inside: bool) -> list[int]:
        if not text:
            return []
        return self._strict.encode_inside(text) if inside else self._strict.encode(text)
