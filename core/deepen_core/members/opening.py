"""How a member begins an answer where an encoder-decoder model takes part.

A decoder starts a text of its own: "Das", whose first token is " Das" in SentencePiece vocabularies. A member that goes
on after "German:" says " Das", and one that answers in a chat "Das". So where main is of another kind than a member,

1. the member is told the answer's text with the blank before it that its own prompt asks for, or without one;
2. its distribution for the first token is spelled as main spells that token.
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
        tokenizer: The member's tokenizer.
        main_blank: Whether main's first token begins with a blank.
        own_blank: Whether the member's does.
        follows: Whether the member's prompt ends in text that a blank has to follow.
    """

    def __init__(self, tokenizer: Spelled, *, main_blank: bool, own_blank: bool, follows: bool) -> None:
        self._tokenizer = tokenizer
        self._main_blank = main_blank
        self._own_blank = own_blank
        self._follows = follows
        # Most tokenizers that begin texts with a blank of their own take one that is there for it.
        self._takes_blank = follows or (own_blank and tokenizer.backend.encode(" a") == tokenizer.backend.encode("a"))
        self._blank_said = False
        self._begun = False

    def told(self, text: str) -> str:
        """Returns what the member is told of a piece of main's text."""
        if self._begun:
            return text
        rest = text.lstrip(" ")
        self._begun = bool(rest)
        said_before, self._blank_said = self._blank_said, self._blank_said or len(rest) < len(text)
        wanted = self._blank_said or (self._follows and self._begun)
        return " " * (self._takes_blank and wanted and not said_before) + rest

    @property
    def first_ids(self) -> torch.Tensor | None:
        """What the member's next tokens count for, if they begin the answer and it spells them otherwise than main."""
        mains = self._main_blank and not self._blank_said
        own = self._own_blank and not (self._blank_said and self._takes_blank)
        return None if self._begun or mains == own else self._tokenizer.first_ids(blank=mains)

    @property
    def has_dummy(self) -> bool:
        """Whether the member's first token begins with a blank that main has not said."""
        return self._own_blank and not self._follows and not self._blank_said


def opening_of(prompt: MemberPrompt, tokenizer: Spelled, main: MemberPrompt, main_tokenizer: Spelled) -> Opening | None:
    """Returns how a member begins an answer; None if neither it nor main begins a text of its own.

    If the answer is begun already, all members go on from the same text.

    Args:
        prompt: Where the member starts.
        tokenizer: The member's tokenizer.
        main: Where the main member starts.
        main_tokenizer: The main member's tokenizer.
    """
    if not any(read.source is not None and not read.text for read in (prompt, main)):
        return None
    own, mains = _begins_with_blank(prompt, tokenizer), _begins_with_blank(main, main_tokenizer)
    return Opening(tokenizer, main_blank=mains, own_blank=own, follows=_follows(prompt))


def respelled(logits: torch.Tensor, first_ids: torch.Tensor) -> torch.Tensor:
    """Returns log-probabilities [vocabulary] in which each token counts for another one.

    Args:
        logits: Of the tokens.
        first_ids: The id of the other one, int64 [vocabulary]; -1 for tokens that cannot follow.
    """
    shares = torch.softmax(logits, dim=-1)
    spelled = len(first_ids)  # embeddings may be padded beyond it
    found = torch.nn.functional.pad(shares, (0, 1)).index_fill_(0, torch.arange(spelled, device=shares.device), 0.0)
    to = first_ids.to(shares.device)
    found.index_add_(0, torch.where(to < 0, len(shares), to), shares[:spelled])
    kept = found[:-1] / found[:-1].sum().clamp_min(torch.finfo(found.dtype).tiny)
    return kept.clamp_min(torch.finfo(kept.dtype).tiny).log()


def first_ids(vocabulary: Vocabulary, *, blank: bool) -> torch.Tensor:
    """Returns the id that each token of a vocabulary counts for at the beginning of an answer, int64 [vocabulary].

    That is the token of the same text with a blank before it or without one, or the longest token that such a text
    begins with, after which token healing finds the rest. A blank by itself says nothing of a main member that says no
    blank: it counts for a token without text.

    Args:
        vocabulary: The member's.
        blank: Whether main's first token begins with a blank.
    """
    ids = list(range(vocabulary.size))
    silent = _silent(vocabulary)
    for token_id in ids.copy():
        value = vocabulary.token_bytes(token_id) or b""
        text = value.removeprefix(b" ")
        if value == b" " and not blank and silent is not None:
            ids[token_id] = silent
        if not text.strip() or text[:1].isspace() or value.startswith(b" ") == blank:
            continue
        found = vocabulary.longest_beginning(b" " + text if blank else text)
        if found is not None and (vocabulary.token_bytes(found) or b"").strip():
            ids[token_id] = found
    return torch.tensor(ids)


def ids_after_blank(vocabulary: Vocabulary) -> torch.Tensor:
    """Returns the id that each token counts for where its first blank is in the text already, int64 [vocabulary].

    That is the token of what follows the blank, or the longest one that this begins with. The blank alone says nothing
    of what follows, and counts for a token without text.

    Args:
        vocabulary: The member's.

    Returns:
        -1 for tokens that do not begin with a blank, and cannot follow.
    """
    silent = _silent(vocabulary)
    ids = [-1] * vocabulary.size
    for token_id in range(vocabulary.size):
        value = vocabulary.token_bytes(token_id) or b""
        if value.startswith(b" "):
            found = vocabulary.longest_beginning(value[1:]) if len(value) > 1 else silent
            ids[token_id] = -1 if found is None else found
    return torch.tensor(ids)


def _silent(vocabulary: Vocabulary) -> int | None:
    """Returns a token without text that does not end one."""
    return next(iter(sorted(vocabulary.special_ids - vocabulary.stop_ids)), None)


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
