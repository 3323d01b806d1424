"""Conversations as texts: the harness wants one string for a prompt, and each member has a chat template of its own.

So the string is the conversation itself, as JSON after a mark. The harness may log it, hash it, keep it in a cache for
other processes and models, and put text after it, which then begins the answer, as text after a rendered template does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deepen_core.chat.messages import Prompt, TextStart, check_messages
from deepen_core.errors import PromptError

MARK = "<|deepen-messages|>"
"""Before the messages."""


def as_text(messages: Sequence[Mapping[str, Any]], *, begins_answer: bool) -> str:
    """Returns a conversation as a text.

    Args:
        messages: The conversation.
        begins_answer: The last message is the beginning of the answer.

    Raises:
        PromptError: If the last message begins the answer and is not the assistant's.
    """
    told = [dict(message) for message in messages]
    if begins_answer:
        if not told or told[-1].get("role") != "assistant":
            raise PromptError(
                f"The last of {len(told)} messages is to begin the answer, and its role is "
                f"{told[-1].get('role') if told else None!r}: let it be of the assistant, or add a generation prompt."
            )
        told[-1]["prefix"] = True
    return MARK + json.dumps(told, ensure_ascii=False)


def prompt_of(text: str) -> Prompt:
    """Returns the prompt that the harness has as a text: a conversation, or the text itself.

    Raises:
        PromptError: If there is a text before a conversation, or a conversation is damaged.
    """
    place = text.find(MARK)
    if place < 0:
        return text or TextStart()
    if place > 0:
        raise PromptError(
            f"The task puts {text[:place][:80]!r} before a conversation, which has no place for it: run it without "
            "chat templates, or put the text into a message."
        )
    try:
        messages, end = json.JSONDecoder().raw_decode(text, len(MARK))
    except ValueError as problem:
        raise PromptError(f"The task has changed a conversation, which cannot be read any more: {problem}.") from None
    return _continued(_checked(messages), text[end:])


def _checked(messages: Any) -> list[dict[str, Any]]:
    """Returns what was read as a conversation if it is one, for a text of a data set may begin with the mark."""
    if not isinstance(messages, list):
        raise PromptError(f"The task has {MARK} before {messages!r:.80}, which is not a list of messages.")
    last = check_messages(messages)[-1]
    if last.get("prefix") and not isinstance(last.get("content"), str):
        raise PromptError(f"The last message begins the answer with {last.get('content')!r:.80}, which is not a text.")
    return messages


def _continued(messages: list[dict[str, Any]], rest: str) -> list[dict[str, Any]]:
    """Returns a conversation with a text after it, which begins the answer or continues its beginning."""
    if not rest:
        return messages
    if messages[-1].get("prefix"):
        return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + rest}]
    return [*messages, {"role": "assistant", "content": rest, "prefix": True}]


def split_pair(context: str, continuation: str) -> tuple[Prompt, str]:
    """Returns the prompt and the text to score.

    White space at the end of what the member is to continue goes to the continuation, as for the harness's own models:
    tokens of most vocabularies begin with a space rather than end with one.

    Args:
        context: As the harness has it.
        continuation: The text after it.
    """
    prompt = prompt_of(context)
    if isinstance(prompt, str):
        kept = prompt.rstrip()
        return kept or TextStart(), prompt[len(kept) :] + continuation
    last = prompt[-1]
    if not last.get("prefix"):
        return prompt, continuation
    kept = last["content"].rstrip()
    begun = [{**last, "content": kept}] if kept else []
    return [*prompt[:-1], *begun], last["content"][len(kept) :] + continuation
