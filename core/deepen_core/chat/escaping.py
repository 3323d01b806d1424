"""Keeps the strings of messages from becoming control tokens in the output of a chat template."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

from deepen_core.chat.messages import Message, TrustedMarkup

# Unicode noncharacters: inserted into messages before a template sees them, removed from its output.
_BREAK = "\ufdd0"  # splits a control token
MARK = "\ufdd1"  # marks the next character as text; a control token of one character cannot be split
_OURS = str.maketrans("", "", _BREAK + MARK)
# Matches nowhere. Patterns begin with a literal character where they can: `re` then skips to it, which is 30 times as
# fast, and no other thread runs Python while `re` searches.
_NEVER = f"{_BREAK}(?!)"

# Fields whose values templates compare with fixed names.
_NAMES = frozenset({"role", "type"})


class Shield:
    """Escapes control tokens in messages.

    Args:
        outer: Control tokens that no string may contain: the special tokens, and those that delimit turns.
        inner: The other control tokens (`<think>`). Assistant messages may contain them, since templates look for them
            there, and so may `TrustedMarkup`.
    """

    def __init__(self, outer: Collection[str], inner: Collection[str]) -> None:
        self._outer = _Splitter(outer)
        self._every = _Splitter([*outer, *inner]) if inner else self._outer

    def shielded(self, message: Message) -> dict[str, Any]:
        """Returns a copy of a message, none of whose strings can put a control token into a template's output.

        Each string is escaped on its own, so strings may be joined in any way.
        """
        splitter = self._outer if message.get("role") == "assistant" else self._every
        shielded: dict[str, Any] = self._value(message, splitter)
        return shielded

    def _value(self, value: Any, splitter: _Splitter) -> Any:
        if isinstance(value, str):
            return (self._outer if isinstance(value, TrustedMarkup) else splitter).close(value)
        if isinstance(value, Mapping):
            return {
                self._key(key, splitter): self._outer.split(v)
                if key in _NAMES and isinstance(v, str)
                else self._value(v, splitter)
                for key, v in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._value(v, splitter) for v in value]
        return value

    def _key(self, key: Any, splitter: _Splitter) -> Any:
        """Plain words may be fields that the template looks up, so only outer tokens are split in such keys."""
        if not isinstance(key, str):
            return key
        return self._outer.split(key) if key.isidentifier() else splitter.close(key)


class _Splitter:
    """Keeps strings from containing given tokens, and from forming one when joined with other strings.

    What it needs of them is made at its first use: some tokenizers have thousands of control tokens.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = list(tokens)
        self._longest = max(map(len, self._tokens), default=0)

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        return re.compile(_starts_of([t for t in self._tokens if len(t) > 1]))

    @cached_property
    def _single(self) -> re.Pattern[str]:
        return re.compile(any_of(t for t in self._tokens if len(t) == 1))

    @cached_property
    def _openings(self) -> set[str]:
        return {t[:i].rstrip() for t in self._tokens for i in range(1, len(t))} - {""}

    @cached_property
    def _endings(self) -> set[str]:
        return {t[i:].lstrip() for t in self._tokens for i in range(1, len(t))} - {""}

    def split(self, text: str) -> str:
        """Returns the text with every token in it split."""
        marked = self._single.sub(lambda found: MARK + found[0], unshielded(text))
        return self._starts.sub(lambda found: found[0] + _BREAK, marked)

    def close(self, text: str) -> str:
        """Like `split`, and no text before or after can complete a token with the start or end of this one.

        The breaks go inside the leading and trailing white space, which templates trim.
        """
        core = unshielded(text).strip()
        whole = self.split(text)
        lead, tail = len(whole) - len(whole.lstrip()), len(whole.rstrip())
        parts = range(1, self._longest)
        first = _BREAK if any(core[:n] in self._endings for n in parts) else ""
        last = _BREAK if core and any(core[-n:] in self._openings for n in parts) else ""
        return whole[:lead] + first + whole[lead:tail] + last + whole[tail:] if core else whole


def _starts_of(tokens: Collection[str]) -> str:
    """Returns a pattern for the first character of each token."""
    parts = [re.escape(first) + f"(?={any_of(rests)})" for first, rests in _by_first(tokens)]
    return "|".join(parts) or _NEVER


def unmarked_of(tokens: Collection[str]) -> str:
    """Returns a pattern for the longest of the tokens at a place, where it does not follow `MARK`."""
    parts = [f"{re.escape(first)}(?<!{MARK}{re.escape(first)}){any_of(rests)}" for first, rests in _by_first(tokens)]
    return "(?:" + ("|".join(parts) or _NEVER) + ")"


def _by_first(tokens: Collection[str]) -> list[tuple[str, list[str]]]:
    """Returns the first characters of tokens, each with what may follow it."""
    firsts = sorted({token[0] for token in tokens})
    return [(first, [token[1:] for token in tokens if token[0] == first]) for first in firsts]


def any_of(tokens: Iterable[str]) -> str:
    """Returns a pattern for the longest of the tokens at a place; without tokens it matches nowhere."""
    listed = sorted(tokens, key=len, reverse=True)
    return "(?:" + ("|".join(map(re.escape, listed)) if listed else _NEVER) + ")"


def unshielded(text: str) -> str:
    """Returns a text without the characters that escaping inserted."""
    return text.translate(_OURS)
