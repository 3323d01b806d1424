"""A member's state for one sequence: its ids, what of them its cache covers, and the logits at its last places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Protocol, TypeVar

import torch

from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.members.opening import Opening
from deepen_core.members.text_tree import common_length
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.tokenization.retokenizer import AlignedText

KEPT_TAIL = 2
"""Number of ids at the end of a text that are run in the step itself, and at most of places whose logits are kept."""

BACK = 3
"""Number of ids at the end of a text before which logits are kept, once so many have been run in steps."""

WORTH_SHARING = 16
"""Least number of ids for which copying another sequence's cache of the same beginning pays off."""


class SequenceCache(Protocol):
    """A member's cache for one sequence."""

    def free(self) -> None:
        """Frees the cache."""
        ...


class Retires(SequenceCache, Protocol):
    """A cache whose text can serve a later sequence that begins alike."""

    def retire(self) -> None:
        """Frees the cache; what it holds may stay until it is needed, or until another one takes its place."""
        ...


class Held(Protocol):
    """What a cache holds of one sequence."""

    ids: list[int]


HeldT = TypeVar("HeldT", bound=Held)


def longest_shared(ids: Sequence[int], others: Iterable[HeldT]) -> tuple[HeldT, int] | None:
    """Returns the other sequence whose beginning a new one shares the most of, and how many ids of it to copy.

    Args:
        ids: Of the new sequence. Its last `KEPT_TAIL` have to be run anyway.
        others: The other sequences.

    Returns:
        None if no other shares so much that copying it pays off.
    """
    wanted = ids[:-KEPT_TAIL]
    shared = {common_length(other.ids, wanted): other for other in others}
    length = max(shared, default=0)
    return (shared[length], length) if length >= WORTH_SHARING else None


class MemberSequence:
    """One member's part of one request: the ids of its sequence, and how many of them its cache covers.

    Args:
        prompt: Where the member starts.
        tokenizer: The member's tokenizer.
        is_main: Whether it is the main member, whose tokens are appended as chosen and never re-tokenised.
        opening: How the member begins the answer, if it may begin it otherwise than main.

    Attributes:
        opening: As given.
        ids: The ids of the sequence.
        cached: Number of ids, from the first on, that `cache` covers.
        cache: The member's cache of the sequence; only the member looks into it, and `release` frees it.
        source: The ids that the encoder of an encoder-decoder model reads, else None.
        start: Number of ids before the answer.
        prompt_tokens: Number of ids of the prompt, which the encoder reads if there is one.
        tokens_run: Number of ids that were run through the model after the prompt.
        cut: Whether the prompt may end anywhere, as in the middle of a word.
        steps: Number of steps in which its logits were asked for.
        started: Whether the whole prompt has been run.
        shares: Whether what was computed for another sequence with the same beginning may be copied.
    """

    shares = True

    def __init__(
        self, prompt: MemberPrompt, tokenizer: MemberTokenizer, *, is_main: bool, opening: Opening | None = None
    ) -> None:
        self._offset = len(prompt.ids)
        backend = prompt.backend or tokenizer.backend
        text = AlignedText(backend, tokenizer.boundaries, prompt.text, inside=prompt.inside)
        self.ids = prompt.ids + text.ids
        self._text = None if is_main else text
        self._tokenizer = tokenizer
        self.opening = opening
        self.cached = 0
        self.cache: SequenceCache | None = None
        self.cut = prompt.cut
        self.source = prompt.source
        self.start = len(self.ids)
        self.prompt_tokens = self.start if prompt.source is None else len(prompt.source)
        self.tokens_run = 0
        self.steps = 0
        self.started = False
        self._recent: dict[int, torch.Tensor] = {}
        self._sure: set[int] = set()  # the places in `_recent` that do not depend on what else was run

    def append_token(self, token_id: int) -> None:
        """Appends a token that main has chosen."""
        self.ids.append(token_id)

    def append_text(self, text: str, *, before_word: bool = False) -> None:
        """Appends text that main has generated; the last ids may change.

        Args:
            text: The text.
            before_word: Whether a word may follow it, see `holds_blank`.
        """
        assert self._text is not None, "the main member's text is its tokens"
        told = text if self.opening is None else self.opening.told(text)
        if not told:
            return
        place, tail = self._text.append(told, before_word=before_word)
        self.replace_ids(place + self._offset, tail)

    def replace_ids(self, place: int, tail: list[int]) -> None:
        """Replaces the ids from a place on; the cache covers them no further than they stay the same."""
        held = self.ids[place:]
        same = 0
        while same < min(len(held), len(tail)) and held[same] == tail[same]:
            same += 1
        self.cached = min(self.cached, place + same)
        self._sure = {n for n in self._sure if n <= self.cached}
        self.ids[place:] = tail

    @property
    def holds_blank(self) -> bool:
        """Whether `ids` leave out the last blank of the text, with which the member's next token begins.

        It says three blanks and " return" where main says four blanks and "return". Of what follows four blanks, which
        it would say only at the end of a line, it knows little.
        """
        return self._text is not None and self._text.holds_blank

    @property
    def first_ids(self) -> torch.Tensor | None:
        """What the member's next tokens count for, see `opening.respelled`; None if for themselves."""
        if self.holds_blank:
            return self._tokenizer.ids_after_blank
        return None if self.opening is None else self.opening.first_ids

    @property
    def has_dummy(self) -> bool:
        """Whether the first token of its answer begins with a blank that is in no text, see `Opening`."""
        return self.opening is not None and self.opening.has_dummy

    @property
    def pending(self) -> int:
        """Number of ids to run before the next logits are known; at least 1, the last id."""
        return len(self.ids) - min(self.cached, len(self.ids) - 1)

    @property
    def kept_tail(self) -> int:
        """Number of places at the end whose logits are looked at, at most `KEPT_TAIL`.

        One where the last id could not have been another: in main's sequence, and at the end of a prompt that cannot
        end in the middle of a word. A place costs a small model a tenth of the forward of a short prompt.
        """
        closed = len(self.ids) == self.start and not (self.cut or self.has_dummy)
        return 1 if self._text is None or closed else KEPT_TAIL

    @property
    def unread(self) -> int:
        """Number of ids to run before the next logits, those of a prompt that an encoder has not read included."""
        return self.pending + (len(self.source) if self.source is not None and not self.started else 0)

    @property
    def settled(self) -> int:
        """Number of ids, from the first on, that no later text changes; all of them in the main member's sequence."""
        return len(self.ids) if self._text is None else self._offset + self._text.settled

    def take_pending(self, limit: int | None = None) -> list[int]:
        """Returns the ids to run now, and counts them as cached.

        Args:
            limit: Take at most this many.
        """
        start = len(self.ids) - self.pending
        self.cached = len(self.ids) if limit is None else min(start + limit, len(self.ids))
        self._recent = {n: logits for n, logits in self._recent.items() if start - BACK <= n <= start}
        if limit is None:
            end = len(self.ids)
            before = {end - 1} if (self.kept_tail > 1 and start < end - 1) or end - 1 in self._recent else set()
            self._sure = {n for n in self._sure if end - BACK <= n <= start} | before | {end}
        if self.started:
            self.tokens_run += self.cached - start
        self.started |= self.cached == len(self.ids)
        return self.ids[start : self.cached]

    def release(self) -> None:
        """Frees the member's cache of this sequence, which cannot be continued afterwards."""
        if self.cache is not None:
            self.cache.free()
            self.cache = None

    def end(self, *, regularly: bool = False) -> None:
        """Frees the cache and the logits, since handles and errors may keep this object for long.

        Args:
            regularly: Whether nothing has failed, so that what was computed may be used again, see `Retires`.
        """
        retire = getattr(self.cache, "retire", None) if regularly else None
        if retire is not None:
            retire()
            self.cache = None
        self.release()
        self._recent.clear()
        self._sure.clear()

    def keep_logits(self, logits: torch.Tensor) -> None:
        """Keeps the logits [at least 1, vocabulary] at the last places that were run."""
        for back in range(min(len(logits), self.kept_tail)):  # `reversed` would copy them
            self._recent[self.cached - back] = logits[-1 - back]

    @property
    def logits_before(self) -> torch.Tensor | None:
        """The logits [vocabulary] from which the last id was chosen, if they are still kept."""
        return self._recent.get(len(self.ids) - 1)

    @property
    def trail(self) -> list[tuple[int, torch.Tensor]]:
        """The last ids, the last one first, each with the logits [vocabulary] that it was chosen from.

        They go back as far as logits are kept; into the prompt only if it may end anywhere.
        """
        places = takewhile(self._recent.__contains__, self.open_places)
        return [(self.ids[place], self._recent[place]) for place in places]

    @property
    def open_places(self) -> list[int]:
        """Places of the last ids that could have been others, the last one first.

        The tokenizer might have cut the end of the text otherwise, had it gone on. That holds for a prompt only if it
        may end anywhere. They go back as far as logits are sure to be kept, at most `BACK`.
        """
        last = len(self.ids) - 1
        first = max(0 if self.cut else self.start, last + 1 - BACK, 1)
        return list(takewhile(self._sure.__contains__, range(last, first - 1, -1)))

    @property
    def logits_after(self) -> torch.Tensor | None:
        """The logits [vocabulary] after the last id, if that has been run and they are still kept."""
        return self._recent.get(len(self.ids)) if self.cached == len(self.ids) else None
