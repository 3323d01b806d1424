"""A conversation in the form that a chat template takes, with nothing left out and the order kept."""

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


@dataclass(frozen=True)
class TemplateCapabilities:
    """What a chat template can render."""

    strings: bool
    """Content as a text; else as a list of parts."""
    system: bool = False
    """A system message at the start."""
    systems: bool = False
    """Several of them at the start."""
    late_system: bool = False
    """A system message further on."""
    repeated: frozenset[str] = frozenset()
    """Which of user and assistant may speak twice in a row."""
    assistant_first: bool = False
    """An assistant message before any user's."""
    empty: frozenset[str] = frozenset()
    """Which of user and assistant may say nothing."""
    tools: bool = False
    """Tool calls and the role `tool`."""
    mapped_arguments: bool = False
    """Arguments of a call as a mapping."""
    written_arguments: bool = False
    """Arguments of a call as JSON."""
    calls_alone: bool = False
    """Tool calls in a message that has no content."""


def adapted(messages: Iterable[Message], takes: TemplateCapabilities) -> list[Message]:
    """A conversation changed so that a template takes it.

    Args:
        messages: The conversation; parts that are not text must be such as the template takes.
        takes: What the template can take.

    Returns:
        Messages whose contents are lists of texts and parts (see `written`), not joined yet.

    Raises:
        PromptError: If the arguments of a tool call are no JSON.
    """
    turns: Iterable[Message] = [_pieced(message, takes) for message in messages]
    turns = [_called(turn, takes) if takes.tools else as_text(turn) for turn in turns]
    turns = _merged(_opened(_systems(turns, takes), takes), takes)
    return [_filled(turn, takes) for turn in turns]


def written(message: Message, takes_strings: bool) -> Message:
    """A message whose content is one text or a list of parts, none of them a bare string.

    Args:
        message: As it came, or as adapted and shielded.
        takes_strings: Whether the template takes content as a text.
    """
    content = message.get("content")
    if isinstance(content, (list, tuple)) and all(isinstance(piece, str) for piece in content):
        content = "".join(content)
    if isinstance(content, str):
        content = content if takes_strings else _part(content)
    elif content is not None:
        runs = groupby(content, lambda piece: isinstance(piece, str))
        content = list(chain.from_iterable(_part("".join(run)) if text else run for text, run in runs))
    # As transformers does from 5.23 on: templates write None out, or stumble over it, and know keys that are missing.
    return {name: value for name, value in {**message, "content": content}.items() if value is not None}


def is_text(piece: Piece) -> bool:
    """Whether a piece of a content is a text, or a part that is nothing else."""
    return isinstance(piece, str) or (piece.get("type", "text") == "text" and isinstance(piece.get("text"), str))


def _part(text: str) -> list[Piece]:
    return [{"type": "text", "text": text}]


def _pieced(message: Message, takes: TemplateCapabilities) -> Message:
    alone = message.get("content") is None and message.get("tool_calls") and takes.tools and takes.calls_alone
    return message if alone else {**message, "content": pieces(message)}


def pieces(message: Message) -> list[Piece]:
    """What a message says, with parts that are text as plain texts."""
    content = message.get("content") or ()
    given: Iterable[Piece] = [content] if isinstance(content, str) else content
    return [piece["text"] if isinstance(piece, Mapping) and is_text(piece) else piece for piece in given]


def _says(message: Message) -> bool:
    """Whether a message says anything at all."""
    return any(not isinstance(p, str) or p.strip() for p in pieces(message)) or bool(message.get("tool_calls"))


def _called(message: Message, takes: TemplateCapabilities) -> Message:
    """A message with its tool calls as the template takes them."""
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
    """A message without tool calls or the role `tool`: the calls are said, a result is a user's."""
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
    """All turns as one, or nothing if there are none."""
    whole: list[Message] = []
    for turn in turns:
        whole = [_both(whole[0], turn)] if whole else [turn]
    return whole


def _both(first: Message, second: Message) -> Message:
    between = [_BETWEEN] if _says(first) and _says(second) else []
    return {**second, **first, "content": [*pieces(first), *between, *pieces(second)]}


def _opened(turns: Sequence[Message], takes: TemplateCapabilities) -> list[Message]:
    """The turns, with a user's in front of an assistant's that may not be the first."""
    place = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), 0)
    late = not takes.assistant_first and turns[place]["role"] == "assistant"
    return [*turns[:place], *([{"role": "user", "content": []}] if late else []), *turns[place:]]


def _merged(turns: Iterable[Message], takes: TemplateCapabilities) -> list[Message]:
    """The turns, with those made one that follow each other and may not."""
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
