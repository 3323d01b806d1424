"""How likely a member finds the text of a prompt, for policies that weigh members by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from deepen_core.chat.messages import Message
from deepen_core.chat.prompt_form import text_of
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.fusion.prompts import PromptLikelihood, PromptLikelihoods
from deepen_core.members.base import Member, prompt_logprobs, read_ahead, source_window
from deepen_core.members.sequence import MemberSequence

_MOST = 1000  # bytes at the end of a prompt that count: some 250 tokens
_STEP = 500  # bytes that are left out at once, so that long prompts that begin alike are cut at the same place
_MOST_IDS = 1024  # ids of these bytes that are run: a tokenizer may spell one character as thirty


def prompt_text(prompt: str | Sequence[Message]) -> str:
    """Returns the end of a prompt's text, the same for all members: without templates, and without control tokens.

    It has at most 1,000 bytes. Of a longer text, the first ones are left out, in steps of 500: so prompts after the
    same examples, and a conversation that goes on, mostly begin at the same place, and that is not read again.

    Args:
        prompt: A text, or a conversation, of which the texts of all messages count.
    """
    if not isinstance(prompt, str):
        prompt = "\n\n".join(text for message in prompt if (text := text_of(message)))
    whole = prompt.encode()
    left_out = math.ceil(max(0, len(whole) - _MOST) / _STEP) * _STEP
    return whole[left_out:].decode(errors="ignore")  # without the end of a character that was cut


def predicts_prompts(member: Member) -> bool:
    """Whether a member finds out how likely a prompt is: an encoder-decoder model reads it, and does not predict it."""
    return source_window(member) is None


@torch.inference_mode()
def prompt_likelihood(member: Member, text: str, sequence: MemberSequence | None = None) -> tuple[float, float] | None:
    """Returns the log-likelihood (nats) of a byte of a text under a member, and the number of these bytes.

    Args:
        member: The member. It runs the text once.
        text: The text.
        sequence: The member's sequence after the same prompt, of which nothing has been run. If its ids are those of
            the text, they are run as its prompt.

    Returns:
        The mean is over all tokens but the first, which only some models can predict; None if there are no others, if
        it is not a finite number, or for a member that does not predict prompts.
    """
    if not predicts_prompts(member):
        return None
    vocabulary = member.tokenizer.vocabulary
    before = member.tokenizer.reader.start_ids  # after any other BOS, Qwen2.5 finds texts less likely
    ids = [*before, *member.tokenizer.backend.encode(text)][: min(_MOST_IDS, member.context_window)]
    start = len(before) + 1
    size = sum(len(vocabulary.token_bytes(token_id) or b"") for token_id in ids[start:])
    found = sum(_logprobs(member, ids, start, sequence)) / size if size else math.nan
    return (found, float(size)) if math.isfinite(found) else None


def _logprobs(member: Member, ids: list[int], start: int, sequence: MemberSequence | None) -> list[float]:
    """Returns what `Member.token_logprobs` does, from the sequence's own prompt if that is the same.

    A sequence that shares nothing must not depend on texts that were read before.
    """
    if sequence is not None and not sequence.shares:
        return member.token_logprobs(ids, start)
    found = read_ahead(member, sequence, start) if sequence is not None and sequence.ids == ids else None
    return prompt_logprobs(member, ids, start) if found is None else found


NOT_ASKED = (0.0, math.inf)
"""What stands for the likelihood of a prompt under a member that does not take part, or that failed."""


def comparable(found: Sequence[tuple[float, float] | None]) -> PromptLikelihood:
    """Returns how likely the members find a prompt; if one of them does not know it, nothing is known.

    Args:
        found: For each member, what `prompt_likelihood` returns of it.
    """
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        return PromptLikelihood.unknown(len(found))
    return PromptLikelihood(tuple(nats for nats, _ in known), min(size for _, size in known))


def prompts_of(sequences: Sequence[EnsembleSequence]) -> PromptLikelihoods:
    """Returns how likely the members find the prompts of sequences, see `WeighingInputs.prompts`."""
    known = [likely for sequence in sequences if (likely := sequence.prompt_likelihood) is not None]
    assert len(known) == len(sequences), "prompts are weighed before anything is fused"
    found = PromptLikelihoods.of(known)
    gone = torch.tensor([[part is None for part in sequence.member_sequences] for sequence in sequences])
    return PromptLikelihoods(found.nats.masked_fill(gone, -torch.inf), found.bytes)
