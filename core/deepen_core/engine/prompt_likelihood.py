"""How likely a member finds the text of a prompt, for policies that weigh members by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from deepen_core.chat.messages import Message
from deepen_core.chat.prompt_form import text_of
from deepen_core.members.base import Member, source_window

_MOST = 1000  # characters at the end of a prompt that count: some 250 tokens, which a member runs at once


def prompt_text(prompt: str | Sequence[Message]) -> str:
    """Returns the end of a prompt's text, the same for all members: without templates, and without control tokens.

    Args:
        prompt: A text, or a conversation, of which the texts of all messages count.
    """
    if not isinstance(prompt, str):
        prompt = "\n\n".join(text for message in prompt if (text := text_of(message)))
    return prompt[-_MOST:]


@torch.inference_mode()
def prompt_likelihood(member: Member, text: str) -> float | None:
    """Returns the log-likelihood (nats) of a byte of a text under a member.

    Args:
        member: The member. It runs the text once, apart from any sequence.
        text: The text.

    Returns:
        The mean over all tokens but the first, which only some models can predict; None if there are no others, if it
        is not a finite number, or for an encoder-decoder model, which reads prompts and does not predict them.
    """
    if source_window(member) is not None:
        return None
    vocabulary = member.tokenizer.vocabulary
    before = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
    ids = [*before, *member.tokenizer.backend.encode(text)][: member.context_window]
    start = len(before) + 1
    size = sum(len(vocabulary.token_bytes(token_id) or b"") for token_id in ids[start:])
    found = sum(member.token_logprobs(ids, start)) / size if size else math.nan
    return found if math.isfinite(found) else None


def comparable(found: Sequence[float | None]) -> list[float]:
    """Returns likelihoods that can be compared: if one is not known, all are zero.

    Args:
        found: For each member, its likelihood.
    """
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else [0.0] * len(found)
