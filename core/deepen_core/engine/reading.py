"""Reads given texts: what every member says before each of main's tokens, in one forward over all of them.

A text grows by main's tokens, as in an answer, and each member holds its own ids of what there is so far. All these
states of all texts are one tree of ids for each member (`members.text_tree`), so an id is run once, not once a step.
Each member's own log-probabilities of a text, by its own tokens, come from the same forwards. A member that cannot run
trees is run step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch

from deepen_core.chat.messages import Message
from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.config import SamplingParams
from deepen_core.engine.member_runner import PREFILL_CHUNK, non_finite
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.engine.sequence_factory import SequenceFactory
from deepen_core.errors import DeepenError, MemberError, NonFiniteLogitsError, PromptError, brief
from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.fusion.mixing import GivenSteps
from deepen_core.members.base import Member, MemberSequence, TreeRun, tree_run_of
from deepen_core.members.memory import is_memory
from deepen_core.members.text_tree import TextPath, TextTree, common_length
from deepen_core.results import MemberScore

T = TypeVar("T")

STEPS = 64
"""Most steps whose distributions are held at once."""

Call = Callable[[Callable[[], Any]], Any]
"""Runs a piece of work where models may be run, and returns its result."""


@dataclass(frozen=True)
class GivenText:
    """A text to read.

    Attributes:
        prompt: The text or conversation before it.
        token_ids: Main's ids of the text.
        bytes: Its length in UTF-8 bytes.
        own_ids: For each member that takes part, by its number, its ids of the prompt and the text together.
        own_start: For each of these, the number of ids before the first that is its own score's.
    """

    prompt: str | Sequence[Message]
    token_ids: list[int]
    bytes: int
    own_ids: dict[int, list[int]]
    own_start: dict[int, int]


class _Reader(Protocol):
    """Reads the texts in one member."""

    def begin(self, part: MemberSequence, own_ids: list[int], own_start: int) -> None:
        """Starts the next text."""
        ...

    def note(self, part: MemberSequence) -> None:
        """Takes down the state of the text before a step."""
        ...

    def end(self) -> None:
        """Ends the text."""
        ...

    def take(self) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """Runs what is pending.

        Returns:
            Log-probabilities [states, vocabulary] after each state that was noted since the last call, and those
            before its last id.
        """
        ...

    def own(self) -> list[list[float]]:
        """Returns the log-probabilities of the member's own ids of each text."""
        ...


class _TreeReader:
    """Reads all states of all texts as one tree.

    Args:
        run: Runs the tree.
        call: Runs pieces of the member's work.
    """

    def __init__(self, run: TreeRun, call: _Caller) -> None:
        self._run = run
        self._call = call
        self._tree = TextTree()
        self._path = TextPath(self._tree)
        self._start: list[int] = []  # nodes at the end of the prompt
        self._done = 0  # nodes that were run
        self._held: dict[int, torch.Tensor] = {}  # log-probabilities after nodes that were run
        self._copies: dict[int, int] = {}  # nodes that are run again, since theirs are not held
        self._states: list[tuple[int, int | None]] = []
        self._own_ids: list[int] = []
        self._place = 0  # of the next own id in the text
        self._asked: list[tuple[int, int, int]] = []  # node, own id after it, text
        self._found: list[list[float]] = []

    def begin(self, part: MemberSequence, own_ids: list[int], own_start: int) -> None:
        self._own_ids, self._place = own_ids, own_start
        self._found.append([])
        self._path.move(part.ids)
        self._start = self._path.nodes[-2:]

    def note(self, part: MemberSequence) -> None:
        self._path.move(part.ids)
        self._ask()
        nodes = self._path.nodes
        self._states.append((self._wanted(nodes[-1]), self._wanted(nodes[-2]) if len(nodes) > 1 else None))

    def end(self) -> None:
        self._path.move(self._own_ids)
        self._ask()

    def _ask(self) -> None:
        """Asks for the own ids that follow nodes of the text as it is now."""
        ids, own = self._path.ids, self._own_ids
        if ids[: self._place] != own[: self._place]:
            return
        while self._place < len(own) and self._place <= len(ids) and ids[self._place - 1] == own[self._place - 1]:
            self._asked.append(
                (self._wanted(self._path.nodes[self._place - 1]), own[self._place], len(self._found) - 1)
            )
            self._place += 1

    def _wanted(self, node: int) -> int:
        """Returns a node whose log-probabilities will be held, with the same text."""
        if node >= self._done or node in self._held:
            return node
        if node not in self._copies:
            self._copies[node] = self._tree.again(node)
        return self._copies[node]

    def take(self) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        nodes = {node for state in self._states for node in state if node is not None}
        nodes |= {node for node, _, _ in self._asked}
        pieces = [torch.stack([self._held[n] for n in self._held])] if self._held else []
        line_of = {node: line for line, node in enumerate(self._held)}
        while self._done < len(self._tree):
            stop = min(len(self._tree), self._done + PREFILL_CHUNK)
            wanted = sorted(node for node in nodes if self._done <= node < stop)
            piece = self._call.logprobs(partial(self._run.run, self._tree, stop, wanted))
            line_of |= {node: len(line_of) + line for line, node in enumerate(wanted)}
            pieces.append(piece)
            self._done = stop
        every = torch.cat(pieces) if pieces else torch.zeros(0, 0)
        self._answer(every, line_of)
        states = every[[line_of[node] for node, _ in self._states]]
        before = [None if node is None else every[line_of[node]] for _, node in self._states]
        kept = {*self._path.nodes[-2:], *self._start}
        self._held = {node: every[line_of[node]].clone() for node in kept if node in line_of}
        self._states, self._copies = [], {}
        return states, before

    def _answer(self, every: torch.Tensor, line_of: dict[int, int]) -> None:
        if self._asked:
            lines = torch.tensor([line_of[node] for node, _, _ in self._asked], device=every.device)
            ids = torch.tensor([token_id for _, token_id, _ in self._asked], device=every.device)
            for (_, _, text), value in zip(self._asked, every[lines, ids].tolist(), strict=True):
                self._found[text].append(value)
        self._asked = []

    def own(self) -> list[list[float]]:
        return self._found


class _StepReader:
    """Runs a member step by step, as for an answer.

    Args:
        call: Runs pieces of the member's work.
    """

    def __init__(self, call: _Caller) -> None:
        self._member = call.member
        self._call = call
        self._states: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._found: list[list[float]] = []
        self._own_ids: list[int] = []
        self._own_start = 0

    def begin(self, part: MemberSequence, own_ids: list[int], own_start: int) -> None:
        self._own_ids, self._own_start = own_ids, own_start
        while self._call(partial(self._member.prefill, part, PREFILL_CHUNK)):
            pass

    def note(self, part: MemberSequence) -> None:
        after = self._call.logprobs(partial(self._member.next_logits, [part]))[0]
        self._states.append((after, part.logits_before))

    def end(self) -> None:
        self._found.append(self._call(partial(self._member.token_logprobs, self._own_ids, self._own_start)))

    def take(self) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        states, self._states = self._states, []
        return torch.stack([after for after, _ in states]) if states else torch.zeros(0, 0), [b for _, b in states]

    def own(self) -> list[list[float]]:
        return self._found


class TextReading:
    """Reads some texts; iterate over it once.

    Args:
        members: The models.
        main: The number of the member whose vocabulary is used.
        factory: Creates the sequences of the texts.
        texts: The texts. Those with the same prompt share its ids if they follow one another.
        call: Runs a piece of work where models may be run.

    Attributes:
        texts: As given.
    """

    def __init__(
        self, members: Sequence[Member], main: int, factory: SequenceFactory, texts: Sequence[GivenText], call: Call
    ) -> None:
        self._members = list(members)
        self._main = main
        self._factory = factory
        self.texts = list(texts)
        self._readers = {number: self._reader(number, call) for number in texts[0].own_ids}

    def _reader(self, number: int, call: Call) -> _Reader:
        member = self._members[number]
        count = sum(len(text.own_ids[number]) for text in self.texts)
        guarded = _Caller(call, member, count, is_main=number == self._main)
        longest = max(len(text.own_ids[number]) for text in self.texts)
        run = guarded(partial(tree_run_of, member, longest))
        return _StepReader(guarded) if run is None else _TreeReader(run, guarded)

    def member_scores(self) -> list[list[MemberScore]]:
        """Returns the members' own scores of each text, once all have been read."""
        own = {number: reader.own() for number, reader in self._readers.items()}
        return [
            [
                MemberScore(self._members[number].name, text.own_ids[number][text.own_start[number] :], found[place])
                for number, found in own.items()
            ]
            for place, text in enumerate(self.texts)
        ]

    def __iter__(self) -> Iterator[GivenSteps]:
        steps = _Steps(self._members, self._main)
        for place, text in enumerate(self.texts):
            sequence = self._factory.create(text.prompt, SamplingParams())
            try:
                yield from self._read(place, text, sequence, steps)
            finally:
                sequence.release()
        if steps.token_ids:
            yield steps.taken(self._readers)
        for reader in self._readers.values():
            reader.take()  # what is left of the members' own ids

    def _read(self, place: int, text: GivenText, sequence: EnsembleSequence, steps: _Steps) -> Iterator[GivenSteps]:
        parts = sequence.member_sequences
        for number, reader in self._readers.items():
            part = parts[number]
            assert part is not None, "it takes part"
            reader.begin(part, text.own_ids[number], text.own_start[number])
        for token_id in text.token_ids:
            for number, reader in self._readers.items():
                part = parts[number]
                if part is not None and (number == self._main or not sequence.others_behind):
                    reader.note(part)
                    steps.note(number, part.ids[-1])
            steps.close(place, token_id, sequence)
            sequence.speak(token_id)
            if len(steps.token_ids) >= STEPS:
                yield steps.taken(self._readers)
        for reader in self._readers.values():
            reader.end()


class _Steps:
    """Collects steps until they are run."""

    def __init__(self, members: Sequence[Member], main: int) -> None:
        self._members = list(members)
        self._main = main
        self._clear()

    def _clear(self) -> None:
        self._last: list[dict[int, int]] = []  # the last id of each member that speaks, for each step
        self._now: dict[int, int] = {}
        self._said: list[tuple[list[int], bool]] = []
        self.texts: list[int] = []
        self.token_ids: list[int] = []

    def note(self, number: int, last: int) -> None:
        """Adds a member to the step."""
        self._now[number] = last

    def close(self, text: int, token_id: int, sequence: EnsembleSequence) -> None:
        """Ends the step, with the token that follows."""
        self._last.append(self._now)
        self._now = {}
        self._said.append((list(sequence.token_ids), sequence.continues_text))
        self.texts.append(text)
        self.token_ids.append(token_id)

    def taken(self, readers: dict[int, _Reader]) -> GivenSteps:
        """Runs the steps."""
        count = len(self.token_ids)
        speaking = torch.zeros(count, len(self._members), dtype=torch.bool)
        logprobs: list[torch.Tensor | None] = [None] * len(self._members)
        silent = Heard(0, None, (), cut=False)
        ends = [[silent] * count for _ in self._members]
        for number, reader in readers.items():
            at = [place for place, last in enumerate(self._last) if number in last]
            rows, before = reader.take()
            if not at:
                continue
            speaking[at, number] = True
            logprobs[number] = rows if len(at) == count else rows.new_zeros(count, rows.shape[1])
            if len(at) < count:
                logprobs[number][at] = rows  # type: ignore[index]
            for place, early in zip(at, before, strict=True):
                said, cut = self._said[place]
                ends[number][place] = Heard(self._last[place][number], early, said, cut=cut)
        found = GivenSteps(self.texts, self.token_ids, logprobs, speaking, ends)
        self._clear()
        return found


@torch.inference_mode()
def _logprobs(member: Member, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Returns log-probabilities [texts, vocabulary] from the logits that a member returns."""
    logprobs = torch.log_softmax(run(), dim=-1)
    best = logprobs.amax(-1)
    if not bool(torch.isfinite(best).all()):
        raise NonFiniteLogitsError(non_finite(member, float(best[~torch.isfinite(best)][0])))
    return logprobs


class _Caller:
    """Runs pieces of work of one member, whose failures become errors that name it.

    Args:
        call: Runs a piece of work where models may be run.
        member: The member.
        is_main: Whether it is the main member.
        tokens: Number of its tokens to read, for error messages.
    """

    def __init__(self, call: Call, member: Member, tokens: int, *, is_main: bool) -> None:
        self.member = member
        self._call = call
        self._is_main = is_main
        self._tokens = tokens

    def __call__(self, work: Callable[[], T]) -> T:
        try:
            return cast("T", self._call(work))
        except DeepenError:
            raise
        except Exception as problem:
            advice = " Shorten the texts." if is_memory(problem) else ""
            if not self._is_main:
                advice += " With weight 0 it is not scored, and the others are."
            raise MemberError(
                f"Member {self.member.name!r} failed to score {self._tokens} tokens: {brief(problem)}.{advice}"
            ) from problem

    def logprobs(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Returns log-probabilities [texts, vocabulary] from the logits that the member returns.

        Args:
            run: Returns the logits.
        """
        return self(partial(_logprobs, self.member, run))


def given_text(
    members: Sequence[Member],
    prompts: dict[int, MemberPrompt],
    prompt: str | Sequence[Message],
    text: str,
    token_ids: list[int],
) -> GivenText:
    """Prepares a text to be read.

    Args:
        members: The models.
        prompts: The prompt as each member that takes part reads it, by its number.
        prompt: The prompt.
        text: The text after it.
        token_ids: Main's ids of the text.

    Raises:
        PromptError: If a member's very first id spans both, and it has no BOS token to condition it on.
    """
    own_ids, own_start = {}, {}
    for number, read in prompts.items():
        member = members[number]
        part = MemberSequence(read, member.tokenizer, is_main=False)
        before = list(part.ids)
        part.append_text(text)
        own_ids[number], own_start[number] = part.ids, common_length(before, part.ids)
        if own_start[number] == 0:
            bos = member.tokenizer.vocabulary.bos_id
            if bos is None:
                raise PromptError(
                    f"Member {member.name!r} has no BOS token, and its first token spans prompt and continuation: give "
                    "a longer prompt."
                )
            own_ids[number], own_start[number] = [bos, *part.ids], 1
    return GivenText(prompt, token_ids, len(text.encode()), own_ids, own_start)
