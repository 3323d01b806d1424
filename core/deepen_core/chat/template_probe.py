"""Conversations with marker words for texts, which tell whether a chat template renders everything."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deepen_core.chat.messages import Message, called

# Markers of three kinds: in texts, in parts (p), which are not rendered where the part is printed as it is, and in
# arguments that are JSON (j), which are not where that became a quoted text.
_SEEN = re.compile(r"""zq(?:t|(?<!["']text["']: ["']zq)p|(?<!\\["']zq)j)(\d+)qz""")


class TemplateProbe:
    """A conversation of the same shape, each of whose texts is one marker word.

    Args:
        messages: The conversation.

    Attributes:
        messages: The same with markers, where there is any text.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._owners: list[int] = []
        self.messages = [self._marked(message, place) for place, message in enumerate(messages)]

    def lost(self, rendered: str) -> list[int]:
        """The places of the messages whose texts are not all in what a template made of the skeleton."""
        seen = {int(number) for number in _SEEN.findall(rendered)}
        return sorted({owner for number, owner in enumerate(self._owners) if number not in seen})

    def _marker(self, owner: int, kind: str = "t") -> str:
        self._owners.append(owner)
        return f"zq{kind}{len(self._owners) - 1}qz"

    def _marked(self, message: Message, place: int) -> Message:
        marked = dict(message)
        content = message.get("content")
        if isinstance(content, str):
            marked["content"] = self._text(content, place)
        elif content is not None:
            marked["content"] = [self._piece(piece, place) for piece in content]
        if message.get("tool_calls"):
            marked["tool_calls"] = [self._call(call, place) for call in message["tool_calls"]]
        return marked

    def _text(self, text: str, place: int, kind: str = "t") -> str:
        return self._marker(place, kind) if text.strip() else text

    def _piece(self, piece: Any, place: int) -> Any:
        if isinstance(piece, str):
            return self._text(piece, place)
        return {**piece, "text": self._text(piece["text"], place, "p")} if isinstance(piece.get("text"), str) else piece

    def _call(self, call: Mapping[str, Any], place: int) -> Mapping[str, Any]:
        function = called(call)
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            marked = {**function, "arguments": f'{{"a": "{self._marker(place, "j")}"}}'}
        elif arguments:
            marked = {**function, "arguments": {"a": self._marker(place)}}
        else:
            marked = {**function, "name": self._marker(place)}
        return {**call, "function": marked} if "function" in call else marked
