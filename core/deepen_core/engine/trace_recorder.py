"""Records what each member says at the steps of traced requests.

The decoding thread only copies a few numbers out of each step's tensors, for all traced sequences at once; records with
texts are made of them where the trace is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.fusion.comparison import Comparison
from deepen_core.members.base import Member
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.tracing import Candidate, TraceStep, Voice
from deepen_core.tracing.records import Decision, Status

_TOP = 5  # most probable tokens that are kept of each distribution
_LARGE = 8192
"""Tokens of a vocabulary whose distributions are compared one by one on a CPU, so that they stay in a core's cache: for
32 of 152,000 tokens that took 10 ms rather than 34."""
Top = tuple[list[int], list[float]]
"""Ids or columns and their probabilities, best first."""


@dataclass(frozen=True)
class Outputs:
    """What the members said in a step, and what became of it.

    Attributes:
        own: Each member's log-probabilities [sequences, vocabulary]; None if it abstains everywhere.
        fused: Fused log-probabilities [sequences, main's vocabulary].
        speaking: Which members have an output, bool [sequences, members] on the CPU.
        weights: float32 [sequences, members] on the CPU.
        comparison: By a strategy that compares members token by token.
    """

    own: Sequence[torch.Tensor | None]
    fused: torch.Tensor
    speaking: torch.Tensor
    weights: torch.Tensor
    comparison: Comparison | None


@dataclass
class _Seen:
    """The numbers of one step, a list of one entry for each traced sequence; those of a member by its number."""

    moved: list[float]
    fused: list[Top]
    own: dict[int, list[Top]]
    heard: dict[int, list[Top]]
    """By columns; empty without a comparison."""
    weights: list[list[float]]
    statuses: list[dict[int, Status]]
    after: list[dict[int, int]]
    """Each member's last id."""
    compared: list[bool]
    """Whether several members speak, and are compared."""
    tokens: list[int] = field(default_factory=list)
    """Main's ids that were chosen; then their probabilities follow."""
    chosen: list[float] = field(default_factory=list)
    chosen_by: dict[int, list[float | None]] = field(default_factory=dict)


class StepTrace:
    """One step of the traced sequences of a batch.

    Args:
        outputs: What was said.
        places: The places of the traced sequences in the batch.
        seen: What is known before tokens are chosen.
        recorder: Makes the records.
    """

    def __init__(self, outputs: Outputs, places: list[int], seen: _Seen, recorder: TraceRecorder) -> None:
        self._outputs: Outputs | None = outputs
        self._places = places
        self._seen = seen
        self._seen.tokens = [0] * len(places)
        self._recorder = recorder

    def chose(self, place: int, token_id: int, sequence: EnsembleSequence) -> None:
        """Adds the step to a sequence, with the token that was chosen for it."""
        line = self._places.index(place)
        self._seen.tokens[line] = token_id
        sequence.trace_steps.append(partial(self._recorder.record, self._seen, line))

    def finish(self) -> None:
        """Reads the probabilities of the tokens that were chosen, and lets the tensors go."""
        outputs, self._outputs = self._outputs, None
        assert outputs is not None, "it is finished once"
        self._recorder.read_chosen(outputs, self._places, self._seen)


class TraceRecorder:
    """Records steps.

    Args:
        members: The members in their order.
        main: The number of the member whose vocabulary is used.
        takes_part: For each member, whether it is run.
    """

    def __init__(self, members: Sequence[Member], main: int, takes_part: Sequence[bool]) -> None:
        self._names = [member.name for member in members]
        self._tokenizers = [member.tokenizer for member in members]
        self._main = main
        self._counted = [number for number, counts in enumerate(takes_part) if counts]
        self._texts = [_Texts(member.tokenizer) for member in members]
        self._column_tokens: list[int] | None = None
        self._column_of: list[int] = []

    def observe(self, sequences: Sequence[EnsembleSequence], outputs: Outputs) -> StepTrace | None:
        """Reads what is known before tokens are chosen; None if no sequence is traced."""
        places = [place for place, sequence in enumerate(sequences) if sequence.params.trace]
        if not places:
            return None
        at = torch.tensor(places)
        main = _lines(outputs.own[self._main], places)
        fused = _lines(outputs.fused, places)
        compared = [False] * len(places)
        heard: dict[int, list[Top]] = {}
        if outputs.comparison is not None:
            lines = outputs.comparison.line_of[at]
            compared = (lines >= 0).tolist()
            for number in self._counted:
                mass = outputs.comparison.told[number]
                if number != self._main and mass is not None and len(mass):
                    heard[number] = _tops(mass[lines.clamp_min(0).to(mass.device)])
        seen = _Seen(
            moved=_distances(fused, main),
            fused=_tops(fused, logs=True),
            own={
                number: _tops(_lines(logprobs, places), logs=True)
                for number in self._counted
                if (logprobs := outputs.own[number]) is not None
            },
            heard=heard,
            weights=(outputs.weights[at] / outputs.weights[at].sum(-1, keepdim=True)).tolist(),
            statuses=[self._statuses(sequences[place], outputs.speaking[place]) for place in places],
            after=[self._last_ids(sequences[place]) for place in places],
            compared=compared,
        )
        if outputs.comparison is not None and self._column_tokens is None:
            self._read_columns(outputs.comparison)
        return StepTrace(outputs, places, seen, self)

    def _statuses(self, sequence: EnsembleSequence, speaking: torch.Tensor) -> dict[int, Status]:
        spoke = speaking.tolist()
        silent: Status = "waiting" if sequence.others_behind else "skipped"
        return {
            number: "spoke" if spoke[number] else "dropped" if sequence.member_sequences[number] is None else silent
            for number in self._counted
        }

    def _last_ids(self, sequence: EnsembleSequence) -> dict[int, int]:
        parts = sequence.member_sequences
        return {
            number: part.ids[-1] for number in self._counted if (part := parts[number]) is not None and len(part.ids)
        }

    def _read_columns(self, comparison: Comparison) -> None:
        """Finds the token of main's that each column stands for: its shortest, with which the others begin."""
        self._column_of = comparison.column_of.tolist()
        vocabulary = self._tokenizers[self._main].vocabulary
        best: dict[int, tuple[int, int]] = {}
        for token_id, column in enumerate(self._column_of):
            key = len(vocabulary.token_bytes(token_id) or b""), token_id
            best[column] = min(best.get(column, key), key)
        self._column_tokens = [best.get(column, (0, 0))[1] for column in range(max(best) + 1)]

    def read_chosen(self, outputs: Outputs, places: list[int], seen: _Seen) -> None:
        """Reads how probable the chosen tokens are, fused and for each member."""
        seen.chosen = _probabilities(outputs.fused, places, seen.tokens)
        main = _probabilities(outputs.own[self._main], places, seen.tokens)
        seen.chosen_by[self._main] = list(main)
        for number in self._counted:
            logprobs = outputs.own[number]
            if number == self._main or logprobs is None:
                continue
            if outputs.comparison is None:
                found = self._as_spelled(number, logprobs, places, seen.tokens)
            else:
                found = self._as_compared(number, outputs.comparison, places, seen.tokens, main)
            seen.chosen_by[number] = found

    def _as_compared(
        self, number: int, comparison: Comparison, places: list[int], tokens: list[int], main: list[float]
    ) -> list[float | None]:
        """Returns what main's probabilities of tokens become if another member's columns replace main's."""
        told, own = comparison.told[number], comparison.own
        lines = comparison.line_of[torch.tensor(places)].tolist()
        columns = [self._column_of[token] for token in tokens]
        if told is None or not len(own):
            return [None] * len(places)
        at = torch.tensor([max(0, line) for line in lines], device=own.device)
        inside = torch.tensor([min(column, own.shape[1] - 1) for column in columns], device=own.device)
        theirs, ours = told[at, inside].tolist(), own[at, inside].tolist()
        found: list[float | None] = []
        for line, column, before, mass, base in zip(lines, columns, main, theirs, ours, strict=True):
            if line < 0:
                found.append(None)
            elif column >= own.shape[1]:  # main alone decides on it
                found.append(before)
            else:
                found.append(min(1.0, before * mass / base) if base > 0 else mass)
        return found

    def _as_spelled(
        self, number: int, logprobs: torch.Tensor, places: list[int], tokens: list[int]
    ) -> list[float | None]:
        """Returns the probabilities of a member's own tokens for main's: with the same bytes, or their beginning."""
        own_ids = [self._own_id(number, token) for token in tokens]
        found = _probabilities(logprobs, places, [own_id or 0 for own_id in own_ids])
        return [None if own_id is None else p for own_id, p in zip(own_ids, found, strict=True)]

    def _own_id(self, number: int, token: int) -> int | None:
        mine, theirs = self._tokenizers[self._main].vocabulary, self._tokenizers[number].vocabulary
        if token in mine.stop_ids:
            return min(theirs.stop_ids, default=None)
        value = mine.token_bytes(token)
        return None if not value else theirs.longest_beginning(value)

    def _main_id(self, number: int, token: int) -> int | None:
        """Returns the token of main's that a member's token stands for where members are not compared."""
        mine, theirs = self._tokenizers[self._main].vocabulary, self._tokenizers[number].vocabulary
        if token in theirs.stop_ids:
            return min(mine.stop_ids, default=None)
        value = theirs.token_bytes(token)
        return None if not value else mine.longest_beginning(value)

    def record(self, seen: _Seen, line: int) -> TraceStep:
        """Makes the record of one step of one sequence."""
        token, vocabulary = seen.tokens[line], self._tokenizers[self._main].vocabulary
        voices = {number: self._voice(seen, line, number) for number in self._counted}
        decision, by = self._decided(seen, line, voices)
        before = voices[self._main].probability
        assert before is not None, "main always speaks"
        return TraceStep(
            token_id=token,
            token=vocabulary.token_bytes(token) or b"",
            text=self._texts[self._main].of(token),
            ends=token in vocabulary.stop_ids,
            probability=seen.chosen[line],
            main_probability=before,
            moved=seen.moved[line],
            decision=decision,
            by=by,
            top=self._texts[self._main].candidates(seen.fused[line]),
            voices=tuple(voices.values()),
        )

    def _voice(self, seen: _Seen, line: int, number: int) -> Voice:
        status, last = seen.statuses[line][number], seen.after[line].get(number)
        name, weight = self._names[number], seen.weights[line][number]
        if status != "spoke":
            return Voice(name, status, weight, None)
        own = self._texts[number].candidates(seen.own[number][line])
        heard = own if number == self._main else self._heard(seen, line, number)
        probability = seen.chosen_by[number][line]
        return Voice(
            name, status, weight, probability, heard, own, "" if last is None else self._texts[number].of(last)
        )

    def _heard(self, seen: _Seen, line: int, number: int) -> tuple[Candidate, ...]:
        texts, probabilities = self._texts[self._main], self._heard_ids(seen, line, number)
        return tuple(Candidate(texts.of(token), p) for token, p in probabilities.items())

    def _heard_ids(self, seen: _Seen, line: int, number: int) -> dict[int, float]:
        """Returns main's tokens for a member's most probable ones, and their probabilities, best first."""
        if number in seen.heard and seen.compared[line] and self._column_tokens is not None:
            columns, masses = seen.heard[number][line]
            return {self._column_tokens[column]: mass for column, mass in zip(columns, masses, strict=True)}
        found: dict[int, float] = {}
        for own_id, probability in zip(*seen.own[number][line], strict=True):
            main_id = self._main_id(number, own_id)
            if main_id is not None:
                found[main_id] = found.get(main_id, 0.0) + probability
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def _decided(self, seen: _Seen, line: int, voices: dict[int, Voice]) -> tuple[Decision, str | None]:
        """See `TraceStep.decision`."""
        token, main = seen.tokens[line], self._names[self._main]
        others = [number for number, voice in voices.items() if number != self._main and voice.spoke]
        if not any(voices[number].weight > 0 for number in others):
            return "alone", main
        likeliest = seen.own[self._main][line][0][0] == token
        if likeliest and all(self._same(next(iter(self._heard_ids(seen, line, n)), None), token) for n in others):
            return "agreement", None
        before = seen.chosen_by[self._main][line]
        assert before is not None, "main always speaks"
        shares = {n: voices[n].weight * (voices[n].probability or 0.0) for n in others}
        loudest = max(shares, key=shares.__getitem__)
        if likeliest or seen.chosen[line] <= before or shares[loudest] <= 0.0:
            return "main", main
        return "other", self._names[loudest]

    def _same(self, heard: int | None, token: int) -> bool:
        """Whether a token that a member was heard to say stands for one of main's."""
        if heard is None or heard == token:
            return heard == token
        stops = self._tokenizers[self._main].vocabulary.stop_ids
        same_column = bool(self._column_of) and self._column_of[heard] == self._column_of[token]
        return same_column or {heard, token} <= stops


class _Texts:
    """The texts of one member's tokens by themselves.

    Args:
        tokenizer: The member's.
    """

    def __init__(self, tokenizer: MemberTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, token_id: int) -> str:
        found = self._known.get(token_id)
        if found is None:
            value = self._tokenizer.vocabulary.token_bytes(token_id)
            spelled = value.decode("utf-8", "backslashreplace") if value else ""
            found = spelled or self._tokenizer.backend.spellings([token_id])[0]
            self._known[token_id] = found
        return found

    def candidates(self, top: Top) -> tuple[Candidate, ...]:
        return tuple(Candidate(self.of(token), probability) for token, probability in zip(*top, strict=True))


def _lines(values: torch.Tensor | None, places: list[int]) -> torch.Tensor:
    """Returns the lines of some sequences; nothing is copied if these are all."""
    assert values is not None, "main never abstains"
    return values if len(places) == len(values) else values[places]


def _tops(values: torch.Tensor, *, logs: bool = False) -> list[Top]:
    """Returns the largest values of each line; of logarithms, their exponentials."""
    best = values.topk(min(_TOP, values.shape[-1]), dim=-1)
    found = best.values.exp() if logs else best.values
    return list(zip(best.indices.tolist(), found.tolist(), strict=True))


def _distances(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """Returns the total variation distance of distributions, given as log-probabilities [sequences, vocabulary]."""
    apart = 1 if first.device.type == "cpu" and first.shape[-1] > _LARGE else max(1, len(first))
    parts = zip(first.split(apart), second.split(apart), strict=True)
    return [distance for one, other in parts for distance in ((one.exp() - other.exp()).abs().sum(-1) / 2).tolist()]


def _probabilities(logprobs: torch.Tensor | None, places: list[int], tokens: list[int]) -> list[float]:
    assert logprobs is not None, "main never abstains"
    found: list[float] = logprobs[places, tokens].exp().tolist()
    return found
