"""Records what each member says at the steps of traced requests.

The decoding thread only copies a few numbers out of each step's tensors, for all traced sequences at once; records with
texts are made of them where the trace is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.engine.step_numbers import (
    NO_ID,
    Compared,
    Spelled,
    StepNumbers,
    Top,
    TopTokens,
    l1_distances,
    lines_of,
    logprobs_of,
)
from deepen_core.fusion.comparison import Comparison
from deepen_core.members.base import Member
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.tracing import Candidate, TraceStep, Voice
from deepen_core.tracing.records import Decision, Status


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


class StepTrace:
    """One step of the traced sequences of a batch.

    Args:
        outputs: What was said.
        places: The places of the traced sequences in the batch.
        seen: What is known before tokens are chosen.
        recorder: Makes the records.
    """

    def __init__(self, outputs: Outputs, places: list[int], seen: StepNumbers, recorder: TraceRecorder) -> None:
        self._outputs: Outputs | None = outputs
        self._places = places
        self._lines = {place: line for line, place in enumerate(places)}
        self._seen = seen
        self._recorder = recorder
        self._record = partial(recorder.record, seen)  # one object for all sequences

    def chose(self, place: int, token_id: int, sequence: EnsembleSequence) -> None:
        """Adds the step to a sequence, with the token that was chosen for it."""
        line = self._lines[place]
        self._seen.tokens[line] = token_id
        sequence.trace_steps.append(self._record)
        sequence.trace_lines.append(line)

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
        self._all_spoke: Mapping[int, Status] = dict.fromkeys(self._counted, "spoke")
        self._texts = [_Texts(member.tokenizer) for member in members]
        self._column_tokens: list[int] | None = None
        self._column_of: list[int] = []

    def observe(self, sequences: Sequence[EnsembleSequence], outputs: Outputs) -> StepTrace | None:
        """Reads what is known before tokens are chosen; None if no sequence is traced."""
        places = [place for place, sequence in enumerate(sequences) if sequence.params.trace]
        if not places:
            return None
        at = torch.tensor(places)
        fused = lines_of(outputs.fused, places)
        lines = torch.full((len(places),), -1)
        heard: dict[int, TopTokens] = {}
        if outputs.comparison is not None:
            lines = outputs.comparison.line_of[at]
            for number in self._counted:
                mass = outputs.comparison.told[number]
                if number != self._main and mass is not None and len(mass):
                    heard[number] = TopTokens.of(mass[lines.clamp_min(0).to(mass.device)])
        seen = StepNumbers(
            l1_distance=l1_distances(fused, lines_of(outputs.own[self._main], places)),
            fused=TopTokens.of(fused, logs=True),
            own={
                number: TopTokens.of(lines_of(logprobs, places), logs=True)
                for number in self._counted
                if (logprobs := outputs.own[number]) is not None
            },
            heard=heard,
            weights=outputs.weights[at],
            statuses=self._statuses([sequences[place] for place in places], outputs.speaking[at].tolist()),
            after=torch.tensor([self._last_ids(sequences[place]) for place in places]),
            lines=lines,
            tokens=[0] * len(places),
        )
        if outputs.comparison is not None and self._column_tokens is None:
            self._read_columns(outputs.comparison)
        return StepTrace(outputs, places, seen, self)

    def _statuses(
        self, sequences: Sequence[EnsembleSequence], speaking: list[list[bool]]
    ) -> list[Mapping[int, Status]]:
        """Returns what the members did in each sequence, for which `speaking` tells which of them spoke."""
        return [
            self._all_spoke if all(spoke) else self._status(sequence, spoke)
            for sequence, spoke in zip(sequences, speaking, strict=True)
        ]

    def _status(self, sequence: EnsembleSequence, spoke: list[bool]) -> dict[int, Status]:
        silent: Status = "waiting" if sequence.others_behind else "skipped"
        return {
            number: "spoke" if spoke[number] else "dropped" if sequence.member_sequences[number] is None else silent
            for number in self._counted
        }

    def _last_ids(self, sequence: EnsembleSequence) -> list[int]:
        parts = sequence.member_sequences
        return [part.ids[-1] if part is not None and len(part.ids) else NO_ID for part in parts]

    def _read_columns(self, comparison: Comparison) -> None:
        """Finds the token of main's that each column stands for: its shortest, with which the others begin."""
        self._column_of = comparison.column_of.tolist()
        vocabulary = self._tokenizers[self._main].vocabulary
        best: dict[int, tuple[int, int]] = {}
        for token_id, column in enumerate(self._column_of):
            key = len(vocabulary.token_bytes(token_id) or b""), token_id
            best[column] = min(best.get(column, key), key)
        self._column_tokens = [best.get(column, (0, 0))[1] for column in range(max(best) + 1)]

    def read_chosen(self, outputs: Outputs, places: list[int], seen: StepNumbers) -> None:
        """Reads how probable the chosen tokens are, fused and for each member."""
        seen.chosen = logprobs_of(outputs.fused, places, seen.tokens)
        seen.chosen_by_main = logprobs_of(outputs.own[self._main], places, seen.tokens)
        for number in self._counted:
            logprobs = outputs.own[number]
            if number == self._main or logprobs is None:
                continue
            if outputs.comparison is None:
                own_ids = [self._own_id(number, token) for token in seen.tokens]
                found = logprobs_of(logprobs, places, [own_id or 0 for own_id in own_ids])
                seen.chosen_by_others[number] = Spelled(found, [own_id is not None for own_id in own_ids])
            elif (told := outputs.comparison.told[number]) is not None and len(told):
                seen.chosen_by_others[number] = self._compared(told, outputs.comparison.own, seen)

    def _compared(self, told: torch.Tensor, own: torch.Tensor, seen: StepNumbers) -> Compared:
        """Reads a member's mass and main's [lines, columns] where the chosen tokens stand."""
        columns = torch.tensor([self._column_of[token] for token in seen.tokens])
        known = columns < own.shape[1]
        at = seen.lines.clamp_min(0).to(own.device), columns.clamp_max(own.shape[1] - 1).to(own.device)
        return Compared(told[at].cpu(), own[at].cpu(), known, seen.lines)

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

    def record(self, seen: StepNumbers, line: int) -> TraceStep:
        """Makes the record of one step of one sequence."""
        token, vocabulary = seen.tokens[line], self._tokenizers[self._main].vocabulary
        voices = {number: self._voice(seen, line, number) for number in self._counted}
        decision, by = self._decided(seen, line, voices)
        return TraceStep(
            token_id=token,
            token=vocabulary.token_bytes(token) or b"",
            text=self._texts[self._main].of(token),
            ends=token in vocabulary.stop_ids,
            probability=seen.lists.chosen[line],
            main_probability=seen.lists.chosen_by_main[line],
            moved=seen.lists.moved[line],
            decision=decision,
            by=by,
            top=self._texts[self._main].candidates(seen.fused.lines[line]),
            voices=tuple(voices.values()),
        )

    def _voice(self, seen: StepNumbers, line: int, number: int) -> Voice:
        status, last = seen.statuses[line][number], seen.lists.after[line][number]
        name, weight = self._names[number], seen.lists.weights[line][number]
        if status != "spoke":
            return Voice(name, status, weight, None)
        own = self._texts[number].candidates(seen.own[number].lines[line])
        heard = own if number == self._main else self._heard(seen, line, number)
        probability = seen.lists.chosen_by_main[line] if number == self._main else self._by_other(seen, line, number)
        return Voice(
            name, status, weight, probability, heard, own, "" if last == NO_ID else self._texts[number].of(last)
        )

    @staticmethod
    def _by_other(seen: StepNumbers, line: int, number: int) -> float | None:
        found = seen.lists.chosen_by_others.get(number)
        return None if found is None else found[line]

    def _heard(self, seen: StepNumbers, line: int, number: int) -> tuple[Candidate, ...]:
        texts, probabilities = self._texts[self._main], self._heard_ids(seen, line, number)
        return tuple(Candidate(texts.of(token), p) for token, p in probabilities.items())

    def _heard_ids(self, seen: StepNumbers, line: int, number: int) -> dict[int, float]:
        """Returns main's tokens for a member's most probable ones, and their probabilities, best first."""
        if number in seen.heard and seen.lists.compared[line] and self._column_tokens is not None:
            columns, masses = seen.heard[number].lines[line]
            return {self._column_tokens[column]: mass for column, mass in zip(columns, masses, strict=True)}
        found: dict[int, float] = {}
        for own_id, probability in zip(*seen.own[number].lines[line], strict=True):
            main_id = self._main_id(number, own_id)
            if main_id is not None:
                found[main_id] = found.get(main_id, 0.0) + probability
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def _decided(self, seen: StepNumbers, line: int, voices: dict[int, Voice]) -> tuple[Decision, str | None]:
        """See `TraceStep.decision`."""
        token, main = seen.tokens[line], self._names[self._main]
        others = [number for number, voice in voices.items() if number != self._main and voice.spoke]
        if not any(voices[number].weight > 0 for number in others):
            return "alone", main
        likeliest = seen.own[self._main].lines[line][0][0] == token
        if likeliest and all(self._same(next(iter(self._heard_ids(seen, line, n)), None), token) for n in others):
            return "agreement", None
        shares = {n: voices[n].weight * (voices[n].probability or 0.0) for n in others}
        loudest = max(shares, key=shares.__getitem__)
        if likeliest or seen.lists.chosen[line] <= seen.lists.chosen_by_main[line] or shares[loudest] <= 0.0:
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
