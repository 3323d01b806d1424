"""What the decoding loop asks of a member, and what it keeps for one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch

from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.results import ONE_AT_A_TIME
from deepen_core.tokenization.retokenizer import AlignedText

KEPT_TAIL = 2
"""Ids at the end of a text that run in the step itself, whose logits are kept: the last id and the one before it."""

WORTH_SHARING = 16
"""From so many ids on, taking over what another sequence holds of the same beginning pays."""


class SequenceCache(Protocol):
    """What a member holds for one sequence."""

    def free(self) -> None:
        """Lets go of it."""
        ...


class MemberSequence:
    """One member's part of one request: the ids it should hold, and how many of them its cache holds.

    Args:
        prompt: Where the member starts.
        tokenizer: The member's tokenizer.
        is_main: Whether it is the main member, whose tokens are appended as chosen and never re-tokenised.

    Attributes:
        ids: The ids it should hold.
        cached: So many of the first ids are in `cache` already.
        cache: What the member holds for it; the member alone looks into it, and `release` frees it.
        prompt_tokens: Ids of the prompt.
        tokens_run: Ids that went through the model after the prompt.
        started: Whether the prompt has been run to its end.
    """

    def __init__(self, prompt: MemberPrompt, tokenizer: MemberTokenizer, *, is_main: bool) -> None:
        self._offset = len(prompt.ids)
        backend = prompt.backend or tokenizer.backend
        text = AlignedText(backend, tokenizer.boundaries, prompt.text, inside=prompt.inside)
        self.ids = prompt.ids + text.ids
        self._text = None if is_main else text
        self.cached = 0
        self.cache: SequenceCache | None = None
        self.prompt_tokens = len(self.ids)
        self.tokens_run = 0
        self.started = False
        self._recent: dict[int, torch.Tensor] = {}

    def append_token(self, token_id: int) -> None:
        """Adds a token that the member itself has spoken."""
        self.ids.append(token_id)

    def append_text(self, text: str) -> None:
        """Adds text that another member has spoken; ids at the end may change."""
        assert self._text is not None, "the main member's text is its tokens"
        place, tail = self._text.append(text)
        place += self._offset
        held = self.ids[place:]
        same = 0
        while same < min(len(held), len(tail)) and held[same] == tail[same]:
            same += 1
        self.cached = min(self.cached, place + same)
        self.ids[place:] = tail

    @property
    def pending(self) -> int:
        """How many ids are to be run before the next logits are known, at least the last one."""
        return len(self.ids) - min(self.cached, len(self.ids) - 1)

    def take_pending(self, limit: int | None = None) -> list[int]:
        """The ids to run now; afterwards they count as cached.

        Args:
            limit: Take so many at most.
        """
        start = len(self.ids) - self.pending
        self.cached = len(self.ids) if limit is None else min(start + limit, len(self.ids))
        self._recent = {n: logits for n, logits in self._recent.items() if start - KEPT_TAIL <= n <= start}
        if self.started:
            self.tokens_run += self.cached - start
        self.started |= self.cached == len(self.ids)
        return self.ids[start : self.cached]

    def release(self) -> None:
        """Frees what the member holds for this sequence, which can go on no more."""
        if self.cache is not None:
            self.cache.free()
            self.cache = None

    def keep_logits(self, logits: torch.Tensor) -> None:
        """Notes the logits [at most KEPT_TAIL, vocabulary] at the last places that were run."""
        for back, sequence in enumerate(reversed(logits)):
            self._recent[self.cached - back] = sequence

    @property
    def logits_before(self) -> torch.Tensor | None:
        """The logits [vocabulary] from which the last id came, in float32, if they are at hand."""
        logits = self._recent.get(len(self.ids) - 1)
        return None if logits is None else logits.float()


@dataclass
class Work:
    """What a member has done since it was loaded, in ids of its own.

    Attributes:
        forwards: Runs of the model.
        ids_run: Ids run because they were new, or the last of their sequence.
        ids_rerun: Ids run once more beside sequences with more new ones.
        ids_copied: Ids whose keys and values were taken over from another sequence that begins alike.
    """

    forwards: int = 0
    ids_run: int = 0
    ids_rerun: int = 0
    ids_copied: int = 0


@dataclass(frozen=True)
class MemberDescription:
    """What a member is, for reports.

    Attributes:
        architecture: Kind of model.
        parameters: How many numbers it has learned; 0 if that means nothing for this kind.
    """

    architecture: str
    parameters: int = 0


class Member(Protocol):
    """A language model with its tokenizer."""

    name: str
    tokenizer: MemberTokenizer
    context_window: int
    work: Work

    @property
    def vocabulary_size(self) -> int:
        """How many logits it gives: its ids are below this."""
        ...

    def describe(self) -> MemberDescription:
        """What it is."""
        ...

    def warm_up(self) -> None:
        """Does ahead of the first request what takes time once; the second time nothing happens."""
        ...

    @property
    def batching(self) -> str:
        """How it runs several sequences: "ragged" (all in one forward) or "one sequence at a time: <why>"."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its logits are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        ...

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """Runs all pending ids of some sequences, together.

        Returns:
            Logits of the token after the last id of each sequence, float32 [sequences, vocabulary]. They may share
            memory with `MemberSequence.logits_before`: do not write to them.
        """
        ...

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """Runs at most `limit` pending ids of a sequence, but not its last `KEPT_TAIL`, ahead of `next_logits`.

        Returns:
            How many ids were run; 0 if none needs to be.
        """
        ...

    def token_logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """Log-probabilities (nats) of `ids[start:]`, each given the ids before it; `start` is at least 1."""
        ...


class Embedded(Member, Protocol):
    """A member that has embeddings, which some strategies compare tokens by."""

    @property
    def embeddings(self) -> torch.Tensor:
        """Input embeddings [vocabulary, width]."""
        ...


def has_embeddings(member: Member) -> TypeGuard[Embedded]:
    """Whether a member has embeddings."""
    return hasattr(member, "embeddings")


def batching_warnings(members: Sequence[Member]) -> list[str]:
    """Says which members hold up requests that are asked together."""
    return [
        f"Member {member.name!r} runs {member.batching}. In it the requests of a batch run one after another, so a "
        "batch of 8 is no faster than 8 calls. Answers are the same; to serve many requests at once, take another "
        "model in its place."
        for member in members
        if member.batching.startswith(ONE_AT_A_TIME)
    ]
