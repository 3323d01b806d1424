"""Conversations whose texts are marker words, to check whether a chat template renders all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deepen_core.chat.messages import Message, called

# Three kinds of markers: in texts (t); in parts (p), which count as lost where the part is printed as Python shows it;
# and in arguments given as JSON (j), which count as lost where the JSON was quoted again as a string.
_SEEN = re.compile(r"""zq(?:t|(?<!["']text["']: ["']zq)p|(?<!\\["']zq)j)(\d+)qz""")


class TemplateProbe:
    """A conversation of the same shape as a given one, in which each text is one marker word.

    Args:
        messages: The conversation.

    Attributes:
        messages: The same messages, with markers in place of non-empty texts.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._owners: list[int] = []
        self.messages = [self._marked(message, place) for place, message in enumerate(messages)]

    def lost(self, rendered: str) -> list[int]:
        """Returns the places of the messages whose markers are not all in the rendered conversation."""
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
