"""What a member and its actor say to each other: one message and one reply a step, for all of its sequences.

The member keeps the ids of each sequence, and knows how many of them the actor has. So a message holds only new ids,
and an actor that has lost a sequence is sent all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from deepen_core.members.top_logprobs import dense_logits

Ids = npt.NDArray[np.int32]

_NUMBER = 8  # bytes that a number in a message counts for


class WrongReplyError(Exception):
    """A reply is not the one to a message."""


@dataclass(frozen=True)
class Facts:
    """What an actor says of the member that it has loaded.

    Attributes:
        actor: Its own name, which no other has.
        place: The machine, process and device.
        vocabulary_size: See `Member`.
        vocabulary: A digest of the tokens of its tokenizer.
        architecture: See `MemberDescription`.
        parameters: See `MemberDescription`.
        dtype: See `Member`.
        batching: See `Member`.
        source_window: Of an encoder; None if there is none.
        has_embeddings: Whether it has any.
    """

    actor: str
    place: str
    vocabulary_size: int
    vocabulary: str
    architecture: str
    parameters: int
    dtype: torch.dtype
    batching: str
    source_window: int | None
    has_embeddings: bool

    @property
    def model(self) -> tuple[object, ...]:
        """What is the same for every actor with the same model."""
        return self.vocabulary_size, self.vocabulary, self.architecture, self.parameters, self.source_window


@dataclass(frozen=True)
class Update:
    """What an actor is told of one sequence.

    Attributes:
        key: Its number.
        known: Number of ids, from the first on, that the actor has; the others it had are no longer true.
        cached: Number of ids, from the first on, that its cache may be used for.
        new: The ids after those known, int32.
        settled: See `MemberSequence.settled`.
        places: Number of last places whose log-probabilities are wanted, at most KEPT_TAIL.
        shares: See `MemberSequence.shares`.
        source: See `MemberSequence.source`; only with a sequence that the actor does not know.
    """

    key: int
    known: int
    cached: int
    new: Ids
    settled: int
    places: int
    shares: bool
    source: Ids | None

    @property
    def length(self) -> int:
        """Number of ids of the sequence."""
        return self.known + len(self.new)


@dataclass(frozen=True)
class Step:
    """A message: sequences to run.

    Attributes:
        number: Its number, which the reply repeats.
        updates: One for each sequence.
        released: Keys of sequences that have ended.
        ahead: Run at most this many ids of each sequence ahead, for no logits; None to run all of them.
    """

    number: int
    updates: list[Update]
    released: list[int]
    ahead: int | None = None

    @property
    def size(self) -> int:
        """Its bytes, without the envelope."""
        sources = sum(update.source.nbytes for update in self.updates if update.source is not None)
        ids = sum(update.new.nbytes for update in self.updates)
        return ids + sources + _NUMBER * (1 + 6 * len(self.updates) + len(self.released))


@dataclass(frozen=True)
class Reply:
    """The reply to a `Step`.

    Attributes:
        actor: Who replies.
        number: The step's.
        lengths: Number of ids of each sequence by its key, in the order of the step.
        unknown: Keys of sequences of which the actor lacks ids that the step takes for known. It has run nothing then.
        ran: Number of ids of each sequence that were run ahead, and how many are cached since.
        places: Number of last places of each sequence that there are log-probabilities of, at least 1; empty if ids
            were run ahead.
        ids: The most probable tokens at these places, int32 [places, k]; None if all tokens are sent in their order.
        logprobs: Their log-probabilities in nats, float32 [places, k or vocabulary].
        work: Forwards, ids run, ids rerun and ids copied since the actor has loaded its model.
    """

    actor: str
    number: int
    lengths: dict[int, int]
    unknown: list[int]
    ran: list[tuple[int, int]]
    places: list[int]
    ids: Ids | None
    logprobs: npt.NDArray[np.float32]
    work: tuple[int, int, int, int]

    @property
    def size(self) -> int:
        """Its bytes, without the envelope."""
        numbers = 6 + 2 * len(self.lengths) + len(self.unknown) + 2 * len(self.ran) + len(self.places)
        return self.logprobs.nbytes + (0 if self.ids is None else self.ids.nbytes) + _NUMBER * numbers

    def check(self, step: Step, actor: str, vocabulary_size: int) -> None:
        """Checks that this is the reply to a step.

        Args:
            step: The step.
            actor: The actor that it was sent to.
            vocabulary_size: Number of logits.

        Raises:
            WrongReplyError: If it is not, or is damaged.
        """
        if (self.actor, self.number) != (actor, step.number):
            raise WrongReplyError(f"step {step.number} of actor {actor} got a reply to {self.number} of {self.actor}")
        if self.unknown:
            return
        wanted = {update.key: update.length for update in step.updates}
        if self.lengths != wanted:
            raise WrongReplyError(f"sequences have {wanted} ids, and the reply is to {self.lengths}")
        if step.ahead is not None:
            lengths = self.lengths.values()
            fits = [
                0 <= ran <= min(step.ahead, n) and n < most for (ran, n), most in zip(self.ran, lengths, strict=False)
            ]
            if len(self.ran) != len(wanted) or not all(fits):
                raise WrongReplyError(f"{self.ran} ids were run and cached, of {step.ahead} asked for in {wanted}")
            return
        most = [update.places for update in step.updates]
        if len(self.places) != len(most) or any(not 1 <= n <= m for n, m in zip(self.places, most, strict=True)):
            raise WrongReplyError(f"log-probabilities of {most} places are wanted, and there are {self.places}")
        shape = (sum(self.places), vocabulary_size if self.ids is None else self.ids.shape[-1])
        if self.logprobs.shape != shape or self.logprobs.dtype != np.float32:
            raise WrongReplyError(f"log-probabilities are {self.logprobs.dtype} {self.logprobs.shape}, not {shape}")
        if self.ids is not None and (self.ids.shape != shape or not _are_ids(self.ids, vocabulary_size)):
            raise WrongReplyError(f"its tokens {self.ids.shape} are not ids below {vocabulary_size}, each once")

    def logits(self, vocabulary_size: int) -> list[torch.Tensor]:
        """Returns logits of each sequence, float32 [its places, vocabulary]."""
        values = torch.from_numpy(np.array(self.logprobs))  # a copy: what Ray has received cannot be written to
        if self.ids is not None:
            values = dense_logits(torch.from_numpy(self.ids.astype(np.int64)), values, vocabulary_size)
        return list(values.split(self.places))


def top_of(logits: Sequence[torch.Tensor], top_k: int | None) -> tuple[Ids | None, npt.NDArray[np.float32]]:
    """Returns what a reply says of logits: `Reply.ids` and `Reply.logprobs`.

    Args:
        logits: Of each sequence, [its places, vocabulary].
        top_k: Number of most probable tokens; None for all.
    """
    logprobs = torch.log_softmax(torch.cat(list(logits)).float(), dim=-1)  # [places, vocabulary]
    if top_k is None or top_k >= logprobs.shape[-1]:
        return None, logprobs.cpu().numpy()
    top = logprobs.topk(top_k, dim=-1)
    return top.indices.int().cpu().numpy(), top.values.cpu().numpy()


def _are_ids(ids: Ids, vocabulary_size: int) -> bool:
    """Whether each line has ids of tokens [places, k], none of them twice."""
    ordered = np.sort(ids, axis=-1)
    within = ordered.size > 0 and ordered[:, 0].min() >= 0 and ordered[:, -1].max() < vocabulary_size
    return bool(within and (np.diff(ordered, axis=-1) > 0).all())
