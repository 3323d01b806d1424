"""Reads the states of growing texts in one member: all at once as a tree of ids, or step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch

from deepen_core.engine.member_runner import PREFILL_CHUNK, non_finite
from deepen_core.errors import DeepenError, MemberError, NonFiniteLogitsError, brief
from deepen_core.members.base import Member, TreeRun, tree_run_of
from deepen_core.members.memory import is_memory
from deepen_core.members.opening import respelled
from deepen_core.members.sequence import BACK, MemberSequence
from deepen_core.members.text_tree import TextPath, TextTree

T = TypeVar("T")

_Piece = tuple[list[int], torch.Tensor]
"""Nodes, and the log-probabilities after each of them, [nodes, vocabulary]."""
Call = Callable[[Callable[[], Any]], Any]
"""Runs a piece of work where models may be run, and returns its result."""

_NORMALISED = 8  # texts whose logits are normalised at once
_ROUNDED = 1.5  # nodes beyond a chunk are run with it if they are at most so many times its number together
_LONGER = 16  # ids by which a state of a text may be longer than the whole text


class StateReader(Protocol):
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

    def take(self) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Runs what is pending.

        Returns:
            Log-probabilities [states, vocabulary] after each state that was noted since the last call, and for each
            state those before its last id, if they are known, and those before the ids at `open_places`.
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

    def __init__(self, run: TreeRun, call: MemberCaller) -> None:
        self._run = run
        self._call = call
        self._tree = TextTree()
        self._path = TextPath(self._tree)
        self._start: list[int] = []  # nodes at the end of the prompt
        self._done = 0  # nodes that were run
        self._held: dict[int, torch.Tensor] = {}  # log-probabilities after nodes that were run
        self._copies: dict[int, int] = {}  # nodes that are run again, since theirs are not held
        self._states: list[tuple[int, list[int], torch.Tensor | None]] = []
        self._own_ids: list[int] = []
        self._place = 0  # of the next own id in the text
        self._asked: list[tuple[int, int, int]] = []  # node, own id after it, text
        self._found: list[list[float]] = []

    def begin(self, part: MemberSequence, own_ids: list[int], own_start: int) -> None:
        self._own_ids, self._place = own_ids, own_start
        self._found.append([])
        self._path.move(part.ids)
        self._start = self._path.nodes[-1 - BACK :]

    def note(self, part: MemberSequence) -> None:
        self._path.move(part.ids)
        self._ask()
        part.take_pending()  # as in a step
        nodes = self._path.nodes
        before = [self._wanted(node) for node in reversed(nodes[-1 - BACK : -1])]
        self._states.append((self._wanted(nodes[-1]), before, part.first_ids))

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

    def take(self) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        nodes = {node for last, before, _ in self._states for node in (last, *before)}
        nodes |= {node for node, _, _ in self._asked}
        lines = dict(self._held)  # the log-probabilities after each node: views, since all of them are much memory
        pieces: list[_Piece] = []
        while self._done < len(self._tree):
            left = len(self._tree) - self._done
            stop = self._done + (left if left <= _ROUNDED * PREFILL_CHUNK else PREFILL_CHUNK)
            wanted = sorted(node for node in nodes if self._done <= node < stop)
            piece = self._call.logprobs(partial(self._run.run, self._tree, stop, wanted))
            lines |= zip(wanted, piece.unbind(), strict=True)
            pieces.append((wanted, piece))
            self._done = stop
        self._answer(lines, pieces)
        states = _states([node for node, _, _ in self._states], lines, pieces)
        before = [[lines[node] for node in nodes] for _, nodes, _ in self._states]
        firsts = {line: first for line, (_, _, first) in enumerate(self._states) if first is not None}
        states = states.clone() if firsts else states  # they may be a piece, which is looked at again
        for line, first_ids in firsts.items():
            states[line] = respelled(states[line], first_ids)
        kept = {*self._path.nodes[-1 - BACK :], *self._start}
        self._held = {node: lines[node].clone() for node in kept if node in lines}
        self._states, self._copies = [], {}
        return states, before

    def _answer(self, lines: Mapping[int, torch.Tensor], pieces: Sequence[_Piece]) -> None:
        """Finds the log-probabilities of the own ids that were asked for."""
        found: dict[int, float] = {}  # by the place in `_asked`
        left = {place: node for place, (node, _, _) in enumerate(self._asked)}
        for nodes, piece in pieces:  # at once, for a GPU
            line_of = {node: line for line, node in enumerate(nodes)}
            places = [place for place, node in left.items() if node in line_of]
            at = torch.tensor([line_of[left.pop(place)] for place in places], dtype=torch.long, device=piece.device)
            ids = torch.tensor([self._asked[place][1] for place in places], dtype=torch.long, device=piece.device)
            found |= zip(places, piece[at, ids].tolist(), strict=True)
        found |= {place: float(lines[node][self._asked[place][1]]) for place, node in left.items()}
        for place, (_, _, text) in enumerate(self._asked):
            self._found[text].append(found[place])
        self._asked = []

    def own(self) -> list[list[float]]:
        return self._found


def _states(nodes: list[int], lines: Mapping[int, torch.Tensor], pieces: Sequence[_Piece]) -> torch.Tensor:
    """Returns the lines of some nodes [nodes, vocabulary]; those that follow one another in a piece are not copied."""
    for wanted, piece in pieces:
        first = wanted.index(nodes[0]) if nodes and nodes[0] in wanted else len(wanted)
        if nodes and wanted[first : first + len(nodes)] == nodes:
            return piece[first : first + len(nodes)]
    return torch.stack([lines[node] for node in nodes]) if nodes else torch.zeros(0, 0)


class _StepReader:
    """Runs a member step by step, as for an answer.

    Args:
        call: Runs pieces of the member's work.
    """

    def __init__(self, call: MemberCaller) -> None:
        self._member = call.member
        self._call = call
        self._states: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
        self._found: list[list[float]] = []
        self._own_ids: list[int] = []
        self._own_start = 0
        self._source: Sequence[int] | None = None

    def begin(self, part: MemberSequence, own_ids: list[int], own_start: int) -> None:
        self._own_ids, self._own_start, self._source = own_ids, own_start, part.source
        while self._call(partial(self._member.prefill, part, PREFILL_CHUNK)):
            pass

    def note(self, part: MemberSequence) -> None:
        after = self._call.logprobs(partial(self._member.next_logits, [part]))[0]
        after = after if part.first_ids is None else respelled(after, part.first_ids)
        before = [part.logits_before] if part.logits_before is not None else []
        self._states.append((after, before + [logits for _, logits in part.trail[1:]]))

    def end(self) -> None:
        given = self._own_ids, self._own_start, self._source
        self._found.append(self._call(partial(self._member.token_logprobs, *given)))

    def take(self) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        states, self._states = self._states, []
        return torch.stack([after for after, _ in states]) if states else torch.zeros(0, 0), [b for _, b in states]

    def own(self) -> list[list[float]]:
        return self._found


@torch.inference_mode()
def _logprobs(member: Member, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Returns log-probabilities [texts, vocabulary] from the logits that a member returns."""
    logprobs = run()
    # In place, a few at a time: they stay in a core's cache, and no memory of the size of all is asked for again.
    for few in logprobs.split(_NORMALISED):
        few.copy_(torch.log_softmax(few, dim=-1))
    best = logprobs.amax(-1)
    if not bool(torch.isfinite(best).all()):
        raise NonFiniteLogitsError(non_finite(member, float(best[~torch.isfinite(best)][0])))
    return logprobs


class MemberCaller:
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
        """Runs a piece of work.

        Raises:
            MemberError: If it fails.
        """
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


def state_reader(call: MemberCaller, longest: int) -> StateReader:
    """Returns what reads texts in a member: as a tree, if its model can do that.

    Args:
        call: Runs pieces of the member's work.
        longest: Number of ids of the longest text.
    """
    run = call(partial(tree_run_of, call.member, longest + _LONGER))
    return _StepReader(call) if run is None else _TreeReader(run, call)
