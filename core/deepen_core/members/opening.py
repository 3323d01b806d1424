"""How a member begins an answer where an encoder-decoder model takes part.

A decoder starts a text of its own: "Das", whose first token is " Das" in SentencePiece vocabularies. A member that goes
on after "German:" says " Das", and one that answers in a chat "Das". So where main is of another kind than a member,

1. the member is told the answer's text with the blank before it that its own prompt asks for, or without one;
2. its distribution for the first token, which comes before it was told anything, is spelled as main spells that token.
"""

from __future__ import annotations

from typing import Protocol

import torch

from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.vocabulary import Vocabulary


class Spelled(Protocol):
    """What an opening needs of a tokenizer."""

    @property
    def backend(self) -> Backend:
        """Encodes plain text."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Bytes of every token."""
        ...

    def first_ids(self, *, blank: bool) -> torch.Tensor:
        """See `first_ids`."""
        ...


class Opening:
    """The beginning of one member's answer.

    Args:
        blank: Whether the text of the answer follows a blank in this member.
        first_ids: What its first tokens count for, see `first_ids`; None if it spells them as main does.
        dummy: Whether its first token begins with a blank that belongs neither to its text nor to main's.

    Attributes:
        dummy: As given.
    """

    def __init__(self, *, blank: bool, first_ids: torch.Tensor | None, dummy: bool) -> None:
        self._lead = " " if blank else ""
        self._first_ids = first_ids
        self._begun = False
        self.dummy = dummy

    def told(self, text: str) -> str:
        """Returns what the member is told of a piece of main's text."""
        if self._begun:
            return text
        text = text.lstrip(" ")
        self._begun = bool(text)
        return self._lead + text if text else ""

    @property
    def first_ids(self) -> torch.Tensor | None:
        """What the member's next tokens count for, if they are its first and it spells them otherwise than main."""
        return None if self._begun else self._first_ids


def opening_of(prompt: MemberPrompt, tokenizer: Spelled, main: MemberPrompt, main_tokenizer: Spelled) -> Opening | None:
    """Returns how a member begins an answer; None if neither it nor main has an encoder.

    Args:
        prompt: Where the member starts.
        tokenizer: The member's tokenizer.
        main: Where the main member starts.
        main_tokenizer: The main member's tokenizer.
    """
    if prompt.source is None and main.source is None:
        return None
    own, mains = _begins_with_blank(prompt, tokenizer), _begins_with_blank(main, main_tokenizer)
    first_ids = None if own == mains else tokenizer.first_ids(blank=mains)
    return Opening(blank=_follows(prompt), first_ids=first_ids, dummy=own and not mains and not _follows(prompt))


def respelled(logits: torch.Tensor, first_ids: torch.Tensor) -> torch.Tensor:
    """Returns logits [vocabulary] in which each token counts for another one, see `first_ids`."""
    shares = torch.softmax(logits, dim=-1)
    spelled = len(first_ids)  # embeddings may be padded beyond it
    found = torch.cat([torch.zeros_like(shares[:spelled]), shares[spelled:]])
    found.index_add_(0, first_ids.to(logits.device), shares[:spelled])
    return found.clamp_min(torch.finfo(found.dtype).tiny).log()


def first_ids(vocabulary: Vocabulary, *, blank: bool) -> torch.Tensor:
    """Returns the id that each token of a vocabulary counts for at the beginning of an answer, int64 [vocabulary].

    That is the token of the same text with a blank before it or without one, or the longest token that such a text
    begins with: what a longer one is told after it, token healing gives to the rest.

    Args:
        vocabulary: The member's.
        blank: Whether main's first token begins with a blank.
    """
    ids = list(range(vocabulary.size))
    for token_id in ids.copy():
        value = vocabulary.token_bytes(token_id) or b""
        text = value.removeprefix(b" ")
        if not text.strip() or text[:1].isspace() or value.startswith(b" ") == blank:
            continue
        found = vocabulary.longest_beginning(b" " + text if blank else text)
        if found is not None and (vocabulary.token_bytes(found) or b"").strip():
            ids[token_id] = found
    return torch.tensor(ids)


def _follows(prompt: MemberPrompt) -> bool:
    """Whether an answer goes on from text that does not end in a blank."""
    return prompt.source is None and bool(prompt.text) and not prompt.text[-1].isspace()


def _begins_with_blank(prompt: MemberPrompt, tokenizer: Spelled) -> bool:
    """Whether the first token of an answer begins with a blank."""
    if prompt.text:
        return _follows(prompt)
    backend = prompt.backend or tokenizer.backend
    ids = backend.encode_inside("a") if prompt.inside else backend.encode("a")
    return bool(ids) and (tokenizer.vocabulary.token_bytes(ids[0]) or b"").startswith(b" ")
