"""The interface between the decoding loop and a member."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch

from deepen_core.members.sequence import MemberSequence
from deepen_core.members.text_tree import TextTree
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.results import ONE_AT_A_TIME, Elsewhere


@dataclass
class Work:
    """What a member has done since it was loaded, counted in its own ids.

    Attributes:
        forwards: Forward passes of the model.
        ids_run: Ids that were run because they were new, or the last of their sequence; those of `token_logprobs` too.
        ids_rerun: Ids that were run again because other sequences of the batch had more new ids, or because the copy of
            a recurrent state ended before the new ids.
        ids_copied: Ids whose keys and values were there already: another sequence begins alike, or the last one did.
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


class ReadsAhead(Member, Protocol):
    """A member that can tell of a prompt what `token_logprobs` does, and run it for the answer at once."""

    def read_ahead(self, sequence: MemberSequence, start: int) -> list[float] | None:
        """Runs the ids of a new sequence as `prefill` does.

        Args:
            sequence: The sequence, of which nothing has been run.
            start: Number of ids that are only given, at least 1.

        Returns:
            Log-probabilities (nats) of the ids after these, each given the ids before it; None if nothing was run:
            this model cannot do so, or the prompt is too short to be run ahead.
        """
        ...

    def prompt_logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """Returns what `token_logprobs` does; the ids that the text shares with recent ones are not run again."""
        ...


def read_ahead(member: Member, sequence: MemberSequence, start: int) -> list[float] | None:
    """Runs a new sequence ahead, and returns log-probabilities of its ids; None if it cannot, see `ReadsAhead`."""
    work = getattr(member, "read_ahead", None)
    found: list[float] | None = None if work is None else work(sequence, start)
    return found


def prompt_logprobs(member: Member, ids: Sequence[int], start: int) -> list[float]:
    """Returns the log-probabilities of a text; what it shares with recent ones is not run again, see `ReadsAhead`."""
    work = getattr(member, "prompt_logprobs", member.token_logprobs)
    found: list[float] = work(ids, start)
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


def asks_by_token(member: Member) -> bool:
    """Whether a member has to ask elsewhere for each token whose probability `token_logprobs` tells."""
    found: bool = getattr(member, "asks_by_token", False)
    return found


def begin(member: Member, sequences: Sequence[MemberSequence]) -> None:
    """Begins a member's step if it computes elsewhere, see `Begins`."""
    work = getattr(member, "begin", None)
    if work is not None:
        work(sequences)


class Closes(Member, Protocol):
    """A member that can give something back: what it holds outside of this process, or a model that it has changed."""

    def close(self) -> None:
        """Gives it back. The member cannot be used afterwards; further calls do nothing."""
        ...


def close(member: Member) -> None:
    """Closes a member that has something to give back, see `Closes`."""
    work = getattr(member, "close", None)
    if work is not None:
        work()


@contextmanager
def closed_on_error(members: Sequence[Member]) -> Iterator[None]:
    """Closes members if what is inside fails, those too that join the sequence there."""
    try:
        yield
    except BaseException:
        for member in members:
            close(member)
        raise


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
