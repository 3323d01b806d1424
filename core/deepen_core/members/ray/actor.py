"""The actor: a member in a process of its own, which runs what messages ask for. It knows nothing of Ray."""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from collections.abc import Sequence

import numpy as np
import torch

from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.config import MemberConfig
from deepen_core.errors import ConfigurationError
from deepen_core.members.base import Member, forget, has_embeddings, source_window
from deepen_core.members.loading import DescribedMember, describe_member, try_member
from deepen_core.members.ray.messages import Facts, Reply, Step, Update, top_of
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.tokenization.vocabulary import Vocabulary


class ActorSequence(MemberSequence):
    """The actor's part of a sequence, whose ids it is told.

    Args:
        update: The first that it is told of it.
        tokenizer: The member's tokenizer.
    """

    def __init__(self, update: Update, tokenizer: MemberTokenizer) -> None:
        source = None if update.source is None else tuple(update.source.tolist())
        super().__init__(MemberPrompt([], "", inside=True, source=source), tokenizer, is_main=True)
        self.shares = update.shares
        self._settled = 0
        self._kept_tail = KEPT_TAIL

    def update(self, update: Update) -> None:
        """Makes the ids what an update says they are."""
        self.replace_ids(update.known, update.new.tolist())
        self.cached = min(self.cached, update.cached)
        self._settled = update.settled
        self._kept_tail = update.places

    @property
    def kept_tail(self) -> int:
        """See `MemberSequence.kept_tail`; what is asked for."""
        return self._kept_tail

    @property
    def settled(self) -> int:
        """Number of ids, from the first on, that no later text changes."""
        return self._settled


class MemberActor:
    """Loads a member, and runs the steps that it is sent.

    Args:
        threads: Number of threads that compute.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._name = uuid.uuid4().hex
        self._described: DescribedMember | None = None
        self._loaded: Member | None = None
        self._top_k: int | None = None
        self._sequences: dict[int, ActorSequence] = {}

    def started(self) -> None:
        """Answers as soon as there is anything to answer."""

    def check(self, config: MemberConfig, device: str | None, dtype: str | None, max_window: int | None) -> None:
        """Reads the small files of the member on this machine, and checks the others.

        Args:
            config: The member, as this process loads it.
            device: See `describe_member`, as the others.
            dtype: Used if the member does not set its own.
            max_window: Caps its context window.

        Raises:
            DeepenError: As from `describe_member` and `DescribedMember.check_files`.
        """
        self._described = describe_member(config, device, dtype, max_window, progress=False)
        self._described.check_files()

    def load(self, top_k: int | None) -> Facts:
        """Loads the weights and tries the model.

        Args:
            top_k: Number of most probable tokens in replies; None for all.

        Raises:
            DeepenError: As from `DescribedMember.load` and `try_member`.
        """
        assert self._described is not None, "checked before"
        member = self._loaded = self._described.load(progress=False)
        self._top_k = top_k
        with torch.inference_mode():
            try_member(member)
        described = member.describe()
        return Facts(
            actor=self._name,
            place=f"{socket.gethostname()}, process {os.getpid()}, {member.device}",
            vocabulary_size=member.vocabulary_size,
            vocabulary=digest(member.tokenizer.vocabulary),
            architecture=described.architecture,
            parameters=described.parameters,
            dtype=member.dtype,
            batching=member.batching,
            source_window=source_window(member),
            has_embeddings=has_embeddings(member),
        )

    @torch.inference_mode()
    def run(self, step: Step) -> Reply:
        """Runs a step."""
        for key in step.released:
            self._drop(key)
        unknown = [update.key for update in step.updates if not self._has(update)]
        if unknown:
            return self._reply(step, unknown=unknown)
        sequences = [self._updated(update) for update in step.updates]
        if step.ahead is not None:
            ran = [self._member.prefill(sequence, step.ahead) for sequence in sequences]
            return self._reply(step, ran=[(n, one.cached) for n, one in zip(ran, sequences, strict=True)])
        last = self._member.next_logits(sequences)  # [sequences, vocabulary]
        wanted = zip(sequences, step.updates, last, strict=True)
        return self._reply(step, logits=[_tail(*one) for one in wanted])

    @torch.inference_mode()
    def token_logprobs(self, ids: Sequence[int], start: int, source: Sequence[int] | None) -> list[float]:
        """See `Member.token_logprobs`."""
        return self._member.token_logprobs(ids, start, source)

    def embeddings(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Returns the input embeddings, float32 [vocabulary, width]."""
        member = self._member
        assert has_embeddings(member), "see `Facts.has_embeddings`"
        return member.embeddings.detach().float().cpu().numpy()

    def forget(self) -> None:
        """Drops what was computed for any sequence."""
        for key in list(self._sequences):
            self._drop(key)
        forget(self._member)

    @property
    def _member(self) -> Member:
        assert self._loaded is not None, "loaded before"
        return self._loaded

    def _has(self, update: Update) -> bool:
        """Whether the actor has the ids of a sequence that it is taken to have."""
        sequence = self._sequences.get(update.key)
        return not update.known or (sequence is not None and len(sequence.ids) >= update.known)

    def _updated(self, update: Update) -> ActorSequence:
        sequence = self._sequences.get(update.key)
        if sequence is None:
            sequence = self._sequences[update.key] = ActorSequence(update, self._member.tokenizer)
        sequence.update(update)
        return sequence

    def _drop(self, key: int) -> None:
        sequence = self._sequences.pop(key, None)
        if sequence is not None:
            sequence.release()

    def _reply(
        self,
        step: Step,
        *,
        unknown: Sequence[int] = (),
        ran: Sequence[tuple[int, int]] = (),
        logits: Sequence[torch.Tensor] = (),
    ) -> Reply:
        work = self._member.work
        ids, logprobs = top_of(logits, self._top_k) if logits else (None, np.zeros((0, 0), dtype=np.float32))
        sequences = {update.key: self._sequences.get(update.key) for update in step.updates}
        return Reply(
            actor=self._name,
            number=step.number,
            lengths={key: 0 if sequence is None else len(sequence.ids) for key, sequence in sequences.items()},
            unknown=list(unknown),
            ran=list(ran),
            places=[len(lines) for lines in logits],
            ids=ids,
            logprobs=logprobs,
            work=(work.forwards, work.ids_run, work.ids_rerun, work.ids_copied),
        )


def _tail(sequence: ActorSequence, update: Update, last: torch.Tensor) -> torch.Tensor:
    """Returns the logits [places, vocabulary] at the last wanted places of a sequence."""
    before = sequence.logits_before if update.places == KEPT_TAIL else None
    return last[None] if before is None else torch.stack([before.to(last.dtype), last])


def digest(vocabulary: Vocabulary) -> str:
    """Returns a digest of the tokens of a vocabulary, by which two machines find out whether they have the same."""
    found = hashlib.sha256()
    for token_id in range(vocabulary.size):
        value = vocabulary.token_bytes(token_id)
        found.update(b"-" if value is None else b"%d:%b" % (len(value), value))
    return found.hexdigest()


def check_same(facts: Facts, before: object, name: str) -> None:
    """Rejects an actor that has loaded another model than is expected.

    Args:
        facts: What it says.
        before: `Facts.model` of the actor before it, or the digest of the tokenizer here if it is the first.
        name: The member's name.

    Raises:
        ConfigurationError: If they differ.
    """
    if before not in (facts.vocabulary, facts.model):
        raise ConfigurationError(
            f"Member {name!r} is another model on {facts.place} than here: its tokens, size or architecture differ. "
            "Put the same files at the same path on every machine."
        )
