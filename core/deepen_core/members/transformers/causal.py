"""A decoder-only model from `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deepen_core.members.sequence import MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers.attention import pack_heads, unpack_heads
from deepen_core.members.transformers.capabilities import is_stateful, probe, probe_trees
from deepen_core.members.transformers.model_member import ModelMember
from deepen_core.members.transformers.ragged import RaggedRunner
from deepen_core.members.transformers.recurrent import RecurrentRunner
from deepen_core.members.transformers.sequential import SequentialRunner
from deepen_core.members.transformers.tree import TreeForward
from deepen_core.results import ONE_AT_A_TIME

_Runner = RaggedRunner | RecurrentRunner | SequentialRunner


@dataclass(frozen=True)
class _Ways:
    """How sequences are run.

    Attributes:
        short: Runs sequences of up to `max_stable_length` ids.
        alone: Runs such sequences where nothing is to depend on others.
        long: Runs longer ones.
        max_stable_length: None if all sequences are run by `short`.
        batching: See `Member.batching`.
    """

    short: _Runner
    alone: RecurrentRunner | SequentialRunner
    long: SequentialRunner
    max_stable_length: int | None
    batching: str


class CausalMember(ModelMember):
    """A loaded `AutoModelForCausalLM` with its tokenizer.

    If the model supports it, sequences run together in a ragged cache. `warm_up`, or else the first use, probes this. A
    model that cannot do so runs its sequences one at a time. If its cache cannot be shortened (state-space and hybrid
    models), copies of its state are kept to go back to; if that gives other logits, the whole text is run every time,
    which is slow but correct. Texts beyond the length at which some rotary embeddings rescale all positions are also
    run one at a time, and whole if the positions keep changing with the length or the model has a state.

    Args:
        name: Its name in reports.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        context_window: In its own tokens.
    """

    def __init__(self, name: str, model: Any, tokenizer: MemberTokenizer, context_window: int) -> None:
        super().__init__(name, model, tokenizer, context_window)
        self._found: _Ways | None = None
        self._reads_trees: bool | None = None
        self._packed = False

    def close(self) -> None:
        """See `Closes.close`."""
        super().close()
        if self._packed:
            unpack_heads(self.model)
            self._packed = False

    def warm_up(self) -> None:
        """Probes how the model runs several sequences. It takes seconds; further calls do nothing."""
        if self._found is None:
            self._found = self._probe()

    @property
    def batching(self) -> str:
        """See `Member.batching`."""
        return self._ways.batching

    @property
    def _ways(self) -> _Ways:
        self.warm_up()
        assert self._found is not None, "just found"
        return self._found

    def _probe(self) -> _Ways:
        self._packed = not is_stateful(self.model) and pack_heads(self.model)  # states are not run together with others
        found = probe(self.model, self.context_window)
        if self._packed and found.masks is None:  # packed heads may be the reason
            unpack_heads(self.model)
            self._packed = False
            found = probe(self.model, self.context_window)
        given = (self.model, self.vocabulary_size, self.work)
        long = SequentialRunner(*given, keeps_cache=found.keeps_cache)
        short: _Runner = long
        alone: RecurrentRunner | SequentialRunner = long
        batching = f"{ONE_AT_A_TIME}: {found.why_not}"
        if found.recurrence is not None:
            short = alone = RecurrentRunner(self.model, found.recurrence, self.vocabulary_size, self.work)
            batching += ", so copies of it are kept"
        elif not found.keeps_cache:
            batching += ", so its whole text is run again for every token"
        if found.masks is not None:
            short, batching = RaggedRunner(self.model, found.masks, self.vocabulary_size, self.work), "ragged"
        if found.max_stable_length is not None:
            keeps = found.keeps_cache and found.positions_fixed
            long = SequentialRunner(*given, keeps_cache=keeps, in_pieces=False, resets=not found.positions_fixed)
            others = "one at a time" if found.recurrence is None else "from their start for every token"
            batching += (
                f" (up to {found.max_stable_length} ids, longer ones {others}: their length changes all positions)"
            )
        return _Ways(short, alone, long, found.max_stable_length, batching)

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        places: dict[_Runner, list[int]] = {}
        for place, sequence in enumerate(sequences):
            places.setdefault(self._way(sequence), []).append(place)
        if len(places) == 1:
            return next(iter(places)).next_logits(sequences)
        logits = torch.empty(len(sequences), self.vocabulary_size, device=self.device)
        for way, at in places.items():
            logits[at] = way.next_logits([sequences[place] for place in at])
        return logits

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """See `Member.prefill`."""
        return self._way(sequence).prefill(sequence, limit)

    def read_ahead(self, sequence: MemberSequence, start: int) -> list[float] | None:
        """See `ReadsAhead.read_ahead`."""
        way = self._way(sequence)
        return way.read_ahead(sequence, start) if isinstance(way, RaggedRunner) else None

    def prompt_logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """See `ReadsAhead.prompt_logprobs`."""
        return self._ways.long.prompt_logprobs(ids, start)

    def forget(self) -> None:
        """See `Forgets.forget`. Other runners keep nothing of one sequence for another."""
        if self._found is not None:
            self._found.long.forget()
            if isinstance(self._found.short, RaggedRunner):
                self._found.short.forget()

    def tree_run(self, longest: int) -> TreeForward | None:
        """See `RunsTrees.tree_run`."""
        ways = self._ways
        fits = ways.max_stable_length is None or longest <= ways.max_stable_length
        if not (isinstance(ways.short, RaggedRunner) and fits):
            return None
        masks = ways.short.masks
        if self._reads_trees is None:  # found out only here: few ensembles ever read a given text
            self._reads_trees = probe_trees(self.model, self.context_window, masks)
        return TreeForward(self.model, masks, self.vocabulary_size, self.work) if self._reads_trees else None

    def _way(self, sequence: MemberSequence) -> _Runner:
        ways = self._ways
        if ways.max_stable_length is not None and len(sequence.ids) > ways.max_stable_length:
            return ways.long
        return ways.short if sequence.shares else ways.alone

    def token_logprobs(self, ids: Sequence[int], start: int, source: Sequence[int] | None = None) -> list[float]:  # noqa: ARG002
        """See `Member.token_logprobs`."""
        return self._ways.long.logprobs(ids, start)
