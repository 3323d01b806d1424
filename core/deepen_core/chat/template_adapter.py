"""Adapts a conversation to what a chat template can render, leaving nothing out and keeping the order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, takewhile
from typing import Any

from deepen_core.chat.messages import Message, called
from deepen_core.chat.tool_format import arguments_text, read_arguments, tool_call_text, tool_response_text

Piece = str | Mapping[str, Any]  # of a message's content: a text, or a part such as an image

_BETWEEN = "\n\n"
_FILLER = "..."
SPEAKERS = frozenset({"user", "assistant"})
THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning", "thoughts")
"""Fields of an assistant's message in which templates look for its thoughts."""


@dataclass(frozen=True)
class TemplateCapabilities:
    """What a chat template can render."""

    strings: bool
    """Content as a text; else as a list of parts."""
    system: bool = False
    """A system message at the start."""
    systems: bool = False
    """Several system messages at the start."""
    late_system: bool = False
    """A system message later on."""
    repeated: frozenset[str] = frozenset()
    """Those of user and assistant that may have two turns in a row."""
    assistant_first: bool = False
    """An assistant message before any user message."""
    empty: frozenset[str] = frozenset()
    """Those of user and assistant whose messages may be empty."""
    tools: bool = False
    """Tool calls and the role `tool`."""
    mapped_arguments: bool = False
    """Arguments of a call as a mapping."""
    written_arguments: bool = False
    """Arguments of a call as JSON text."""
    calls_alone: bool = False
    """Tool calls in a message without content."""


def adapted(messages: Iterable[Message], takes: TemplateCapabilities) -> list[Message]:
    """Changes a conversation so that a template can render it.

    Args:
        messages: The conversation; the template must be able to render its parts that are not text.
        takes: What the template can render.

    Returns:
        Messages whose contents are lists of texts and parts (see `written`), not joined yet.

    Raises:
        PromptError: If the arguments of a tool call cannot be written as JSON.
    """
    turns: Iterable[Message] = [_pieced(message, takes) for message in messages]
    turns = [_called(turn, takes) if takes.tools else as_text(turn) for turn in turns]
    turns = _merged(_opened(_systems(turns, takes), takes), takes)
    return [_filled(turn, takes) for turn in turns]


def written(message: Message, takes_strings: bool) -> Message:
    """Returns a message whose content is one text or a list of parts without bare strings.

    Args:
        message: A message as given, or adapted and shielded.
        takes_strings: Whether the template renders content given as a text.
    """
    content = message.get("content")
    if isinstance(content, (list, tuple)) and all(isinstance(piece, str) for piece in content):
        content = "".join(content)
    if isinstance(content, str):
        content = content if takes_strings else _part(content)
    elif content is not None:
        runs = groupby(content, lambda piece: isinstance(piece, str))
        content = list(chain.from_iterable(_part("".join(run)) if text else run for text, run in runs))
    # As transformers does from 5.23 on: templates print None or fail on it, but handle missing keys.
    return {name: value for name, value in {**message, "content": content}.items() if value is not None}


def is_text(piece: Piece) -> bool:
    """Whether a piece of content is a text, or a part that is only text."""
    return isinstance(piece, str) or (piece.get("type", "text") == "text" and isinstance(piece.get("text"), str))


def _part(text: str) -> list[Piece]:
    return [{"type": "text", "text": text}]


def _pieced(message: Message, takes: TemplateCapabilities) -> Message:
    alone = message.get("content") is None and message.get("tool_calls") and takes.tools and takes.calls_alone
    return message if alone else {**message, "content": pieces(message)}


def pieces(message: Message) -> list[Piece]:
    """Returns the content of a message as a list, its text parts as plain strings."""
    content = message.get("content") or ()
    given: Iterable[Piece] = [content] if isinstance(content, str) else content
    return [piece["text"] if isinstance(piece, Mapping) and is_text(piece) else piece for piece in given]


def _says(message: Message) -> bool:
    """Whether a message has any content or tool calls."""
    return any(not isinstance(p, str) or p.strip() for p in pieces(message)) or bool(message.get("tool_calls"))


def _called(message: Message, takes: TemplateCapabilities) -> Message:
    """Returns a message with its tool calls in the form that the template renders."""
    if "tool_calls" not in message:
        return message
    if not message["tool_calls"]:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    return {**message, "tool_calls": [_with_arguments(call, takes) for call in message["tool_calls"]]}


def _with_arguments(call: Mapping[str, Any], takes: TemplateCapabilities) -> Mapping[str, Any]:
    function = called(call)
    arguments = function.get("arguments")
    if isinstance(arguments, str) and takes.mapped_arguments and not takes.written_arguments:
        arguments = read_arguments(arguments)
    elif isinstance(arguments, Mapping) and takes.written_arguments and not takes.mapped_arguments:
        arguments = arguments_text(function["name"], arguments)
    else:
        return call
    changed = {**function, "arguments": arguments}
    return {**call, "function": changed} if "function" in call else changed


def as_text(message: Message) -> Message:
    """Returns a message without tool calls or role `tool`: calls become text, a result becomes a user message."""
    if message["role"] == "tool":
        return {"role": "user", "content": tool_response_text(pieces(message))}
    said = {key: value for key, value in message.items() if key != "tool_calls"}
    if not message.get("tool_calls"):
        return said
    content = pieces(message) if _says(said) else []
    for function in map(called, message["tool_calls"]):
        content += ["\n"] if content else []
        content += tool_call_text(function["name"], function.get("arguments"))
    return {**said, "content": content}


def _systems(turns: Sequence[Message], takes: TemplateCapabilities) -> list[Message]:
    first = list(takewhile(lambda turn: turn["role"] == "system", turns))
    rest = [
        {**turn, "role": "user"} if turn["role"] == "system" and not takes.late_system else turn
        for turn in turns[len(first) :]
    ]
    if not takes.system:
        first = [{**turn, "role": "user"} for turn in first]
        if first and rest and rest[0]["role"] == "user":
            first.append(rest.pop(0))
    return [*(first if takes.system and takes.systems else _joined(first)), *rest]


def _joined(turns: Iterable[Message]) -> list[Message]:
    """Merges all turns into one; returns an empty list if there are none."""
    whole: list[Message] = []
    for turn in turns:
        whole = [_both(whole[0], turn)] if whole else [turn]
    return whole


def _both(first: Message, second: Message) -> Message:
    between = [_BETWEEN] if _says(first) and _says(second) else []
    merged = {**second, **first, "content": [*pieces(first), *between, *pieces(second)]}
    for field in THOUGHT_FIELDS:
        if isinstance(first.get(field), str) and isinstance(second.get(field), str):
            merged[field] = f"{first[field]}{_BETWEEN}{second[field]}"
    return merged


def _opened(turns: Sequence[Message], takes: TemplateCapabilities) -> list[Message]:
    """Inserts a user turn before an assistant turn that may not come first."""
    place = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), 0)
    late = not takes.assistant_first and turns[place]["role"] == "assistant"
    return [*turns[:place], *([{"role": "user", "content": []}] if late else []), *turns[place:]]


def _merged(turns: Iterable[Message], takes: TemplateCapabilities) -> list[Message]:
    """Merges consecutive turns of one role where the template does not allow them."""
    merged: list[Message] = []
    for turn in turns:
        role = turn["role"]
        alike = merged and merged[-1]["role"] == role and role in SPEAKERS and not merged[-1].get("tool_calls")
        if alike and role not in takes.repeated:
            merged[-1] = _both(merged[-1], turn)
        else:
            merged.append(turn)
    return merged


def _filled(turn: Message, takes: TemplateCapabilities) -> Message:
    may = turn["role"] not in SPEAKERS or turn["role"] in takes.empty or _says(turn)
    return turn if may else {**turn, "content": [_FILLER]}
