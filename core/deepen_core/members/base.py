"""The interface between the decoding loop and a member, and a member's state for one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol, TypeGuard

import torch

from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.members.opening import Opening
from deepen_core.members.text_tree import TextTree
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.results import ONE_AT_A_TIME, Elsewhere
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

    def append_text(self, text: str) -> None:
        """Appends text that main has generated; the last ids may change."""
        assert self._text is not None, "the main member's text is its tokens"
        told = text if self.opening is None else self.opening.told(text)
        if not told:
            return
        place, tail = self._text.append(told)
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
    def first_ids(self) -> torch.Tensor | None:
        """What the member's next tokens count for, see `Opening.first_ids`; None if for themselves."""
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

    def keep_logits(self, logits: torch.Tensor) -> None:
        """Keeps the logits [at least 1, vocabulary] at the last places that were run."""
        for back, sequence in enumerate(reversed(logits[-self.kept_tail :])):
            self._recent[self.cached - back] = sequence

    @property
    def logits_before(self) -> torch.Tensor | None:
        """The logits [vocabulary] from which the last id was chosen, in float32, if they are still kept."""
        logits = self._recent.get(len(self.ids) - 1)
        return None if logits is None else logits.float()

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


@dataclass
class Work:
    """What a member has done since it was loaded, counted in its own ids.

    Attributes:
        forwards: Forward passes of the model.
        ids_run: Ids that were run because they were new, or the last of their sequence.
        ids_rerun: Ids that were run again because other sequences of the batch had more new ids, or because the copy of
            a recurrent state ended before the new ids.
        ids_copied: Ids whose keys and values were copied from another sequence with the same beginning.
    """

    forwards: int = 0
    ids_run: int = 0
    ids_rerun: int = 0
    ids_copied: int = 0


@dataclass(frozen=True)
class MemberDescription:
    """Facts about a member, for reports.

    Attributes:
        architecture: Kind of model.
        parameters: Number of learned parameters; 0 if that is meaningless for this kind.
        elsewhere: Where it runs, if in another process.
    """

    architecture: str
    parameters: int = 0
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True)
class WeightBytes:
    """How large the weights of a member are.

    Attributes:
        parameters: Their number.
        files: Bytes on disk.
        memory: Bytes on its device, in the dtype that it is loaded in.
        dtype: That dtype.
    """

    parameters: int
    files: int
    memory: int
    dtype: str


class Member(Protocol):
    """A language model with its tokenizer."""

    name: str
    tokenizer: MemberTokenizer
    context_window: int
    work: Work

    @property
    def vocabulary_size(self) -> int:
        """Number of logits; all ids are below it."""
        ...

    def describe(self) -> MemberDescription:
        """Describes the model."""
        ...

    def warm_up(self) -> None:
        """Does one-time slow work ahead of the first request; further calls do nothing."""
        ...

    @property
    def batching(self) -> str:
        """How it runs several sequences: "ragged" (all in one forward) or "one sequence at a time: <why>"."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of its logits."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in."""
        ...

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """Runs all pending ids of the given sequences together.

        Returns:
            Logits of the token after the last id of each sequence, float32 [sequences, vocabulary]. They may share
            memory with `MemberSequence.logits_before`: do not write to them.
        """
        ...

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """Runs at most `limit` pending ids of a sequence, but not its last `KEPT_TAIL`, ahead of `next_logits`.

        Returns:
            The number of ids that were run; 0 if none need to be.
        """
        ...

    def token_logprobs(self, ids: Sequence[int], start: int, source: Sequence[int] | None = None) -> list[float]:
        """Log-probabilities (nats) of `ids[start:]`, each given the ids before it; `start` is at least 1.

        Args:
            ids: A text.
            start: Number of ids that are only given.
            source: What the encoder of an encoder-decoder model reads, see `MemberSequence.source`.
        """
        ...


class TreeRun(Protocol):
    """Runs the ids of one tree of texts."""

    def run(self, tree: TextTree, stop: int, wanted: Sequence[int]) -> torch.Tensor:
        """Runs the nodes of a tree that were not run before, up to `stop`.

        Args:
            tree: The tree, the same in each call; it may have grown.
            stop: Runs the nodes before this one, at least one.
            wanted: Nodes among those that are run now.

        Returns:
            Logits of the token after each wanted node, float32 [wanted, vocabulary].
        """
        ...


class RunsTrees(Member, Protocol):
    """A member that can run several texts with a common beginning, or all states of a growing one, at once."""

    def tree_run(self, longest: int) -> TreeRun | None:
        """Returns what runs a tree of texts of at most `longest` ids; None if this model cannot."""
        ...


def tree_run_of(member: Member, longest: int) -> TreeRun | None:
    """Returns what runs a tree of a member's texts; None for a member that cannot, see `RunsTrees`."""
    make = getattr(member, "tree_run", None)
    found: TreeRun | None = None if make is None else make(longest)
    return found


class Forgets(Member, Protocol):
    """A member that keeps something of its sequences, and can drop it."""

    def forget(self) -> None:
        """Drops whatever was computed for any sequence; those that go on are computed anew."""
        ...


def forget(member: Member) -> None:
    """Makes a member forget what it has computed, if it keeps anything, see `Forgets`."""
    work = getattr(member, "forget", None)
    if work is not None:
        work()


class Begins(Member, Protocol):
    """A member that computes elsewhere, so that its step can run while other members' do."""

    def begin(self, sequences: Sequence[MemberSequence]) -> None:
        """Begins a step without waiting for it; what goes wrong, the next `next_logits` raises.

        Args:
            sequences: What the next `next_logits` asks for, which may leave out some that have ended meanwhile.
        """
        ...


def begin(member: Member, sequences: Sequence[MemberSequence]) -> None:
    """Begins a member's step if it computes elsewhere, see `Begins`."""
    work = getattr(member, "begin", None)
    if work is not None:
        work(sequences)


class Closes(Member, Protocol):
    """A member that holds something outside of this process, and can give it back."""

    def close(self) -> None:
        """Gives it back. The member cannot be used afterwards; further calls do nothing."""
        ...


def close(member: Member) -> None:
    """Closes a member that holds something outside of this process, see `Closes`."""
    work = getattr(member, "close", None)
    if work is not None:
        work()


class Embedded(Member, Protocol):
    """A member that has embeddings, by which some strategies compare tokens."""

    @property
    def embeddings(self) -> torch.Tensor:
        """Input embeddings [vocabulary, width]."""
        ...


def has_embeddings(member: Member) -> TypeGuard[Embedded]:
    """Whether a member has embeddings."""
    return hasattr(member, "embeddings")


class Windowed(Protocol):
    """What has a context window: a member, or its description."""

    @property
    def context_window(self) -> int:
        """In its own tokens."""
        ...


def source_window(member: Windowed) -> int | None:
    """Returns the maximum number of tokens of a prompt, for a member with an encoder; None for others.

    The `context_window` of such a member is that of its decoder, which holds the answer alone.
    """
    found: int | None = getattr(member, "source_window", None)
    return found


def prompt_window(member: Windowed) -> int:
    """Returns the window that a prompt has to fit into."""
    window = source_window(member)
    return member.context_window if window is None else window


def batching_warnings(members: Sequence[Member]) -> list[str]:
    """Returns a warning for each member that slows down concurrent requests."""
    return [
        f"Member {member.name!r} runs {member.batching}. It processes the requests of a batch one after another, so a "
        "batch of 8 is no faster than 8 calls. Answers are the same; to serve many requests at once, use another "
        "model instead."
        for member in members
        if member.batching.startswith(ONE_AT_A_TIME)
    ]
