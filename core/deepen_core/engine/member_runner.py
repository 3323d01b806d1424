"""One member's forward over the rows of a step, and what becomes of a row in which the member fails."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepen_core.config import MemberErrorPolicy
from deepen_core.engine.sequence import Row
from deepen_core.errors import MemberError, NonFiniteLogitsError, brief
from deepen_core.members.base import KEPT_TAIL, Member, MemberRow
from deepen_core.members.memory import MORE_ROOM, is_memory

PREFILL_CHUNK = 256
"""Prompt ids that run between two steps, so that other requests need not wait for a long prompt."""


@dataclass(frozen=True)
class Said:
    """What one member said in a step.

    Attributes:
        at: Places of the rows it answered.
        logits: Its logits there, [rows answered, vocabulary]; None if it answered none.
    """

    at: list[int]
    logits: torch.Tensor | None

    def only(self, places: Sequence[int]) -> Said:
        """What it said to some of the rows, whose places are counted anew."""
        new = {old: place for place, old in enumerate(places)}
        kept = [i for i, place in enumerate(self.at) if place in new]
        if self.logits is None or not kept:
            return Said([], None)
        logits = self.logits if len(kept) == len(self.at) else self.logits[kept]
        return Said([new[self.at[i]] for i in kept], logits)


class Forward:
    """Runs one member.

    A failure is the row's in which it happens: it ends the row, or the row goes on without the member, as the request
    has it. Nothing that was computed before a failure is used after it.

    Args:
        member: The model.
        number: Its place in the ensemble.
        speaks: Whether it is the main member, without which no row can go on.
        on_member_error: The policy of rows that name none.
    """

    def __init__(self, member: Member, number: int, *, speaks: bool, on_member_error: MemberErrorPolicy) -> None:
        self.member = member
        self._number = number
        self._speaks = speaks
        self._policy = on_member_error
        self._width: int | None = None  # so many rows at once have turned out to fit into memory

    def run(self, rows: Sequence[Row]) -> Said:
        """Gives logits for the next token of rows, but where the member has no say or fails."""
        at = [place for place, row in enumerate(rows) if self._takes_part(row)]
        width = self._width or max(1, len(at))
        parts = [self._run_together(rows, at[start : start + width]) for start in range(0, len(at), width)]
        return _joined(parts)

    def _run_together(self, rows: Sequence[Row], at: list[int]) -> Said:
        try:
            logits = self.member.next_logits([self._side(rows[place]) for place in at])
        except Exception as problem:  # noqa: BLE001 (models raise whatever they like; the request tells it)
            return self._run_each(rows, at, problem)
        return self._checked(rows, at, logits)

    def prefill(self, row: Row, limit: int) -> int:
        """Runs at most `limit` ids of the prompt ahead of `run`; 0 if none needs to be."""
        side = row.sides[self._number]
        if side is None or row.ended or side.pending <= KEPT_TAIL:
            return 0
        try:
            return self.member.prefill(side, limit)
        except Exception as problem:  # noqa: BLE001 (as in `run`)
            self._fail(row, problem)
            return 0

    def _takes_part(self, row: Row) -> bool:
        if row.ended or row.sides[self._number] is None:
            return False
        return self._speaks or not row.others_behind

    def _side(self, row: Row) -> MemberRow:
        side = row.sides[self._number]
        assert side is not None, "it takes part"
        return side

    def _run_each(self, rows: Sequence[Row], at: Sequence[int], problem: Exception) -> Said:
        """Finds the rows at fault, and runs the others alone.

        A forward that broke off may have written to some layers of a cache and not to others, so every cache it had in
        hand is given up and computed again.
        """
        if len(at) == 1:
            self._fail(rows[at[0]], problem)
            return Said([], None)
        traceback.clear_frames(problem.__traceback__)
        for place in at:
            self._forget(rows[place])
        found: list[torch.Tensor] = []
        answered: list[int] = []
        for place in at:
            side = self._side(rows[place])
            try:
                while self.member.prefill(side, PREFILL_CHUNK):
                    pass
                found.append(self.member.next_logits([side])[0])
                answered.append(place)
            except Exception as again:  # noqa: BLE001 (as in `run`)
                self._fail(rows[place], again)
        if is_memory(problem) and len(answered) == len(at):  # each fits, all together do not
            self._width = max(1, len(at) // 2)
        return self._checked(rows, answered, torch.stack(found)) if found else Said([], None)

    def _forget(self, row: Row) -> None:
        side = self._side(row)
        side.release()
        side.cached = 0

    def _checked(self, rows: Sequence[Row], at: list[int], logits: torch.Tensor) -> Said:
        """Fails the rows in which logits are no numbers to choose by."""
        best = logits.amax(-1)  # NaN if any entry is
        finite = torch.isfinite(best)
        if bool(finite.all()):
            return Said(at, logits)
        for place, value, fine in zip(at, best.tolist(), finite.tolist(), strict=True):
            if not fine:
                self._fail(rows[place], NonFiniteLogitsError(self._non_finite(value)))
        kept = finite.nonzero()[:, 0]
        return Said([at[i] for i in kept.tolist()], logits[kept])

    def _non_finite(self, value: float) -> str:
        why = "its weights are damaged, or its code fails on this text (run it alone in transformers to see)"
        if self.member.dtype == torch.float16:  # the others reach as far as float32
            why = "its dtype float16 overflows (load it with dtype='bfloat16' or 'float32'), or its weights are damaged"
        return f"Member {self.member.name!r} returned logits whose largest is {value}: {why}.{self._way_out()}"

    def _fail(self, row: Row, problem: Exception) -> None:
        traceback.clear_frames(problem.__traceback__)  # they hold all that the forward had computed
        error = problem if isinstance(problem, MemberError) else self._error(row, problem)
        policy = row.params.on_member_error or self._policy
        if self._speaks or policy == "raise":
            row.fail(error)
        else:
            row.drop(
                self._number,
                f"Member {self.member.name!r} failed and had no say from token {len(row.token_ids) + 1} of the answer "
                f"on: {brief(problem)}",
            )

    def _error(self, row: Row, problem: Exception) -> MemberError:
        advice = f" {MORE_ROOM}" if is_memory(problem) else ""
        error = MemberError(
            f"Member {self.member.name!r} failed with {row.main_side.prompt_tokens} prompt tokens and "
            f"{len(row.token_ids)} tokens of the answer: {brief(problem)}.{advice}{self._way_out()}"
        )
        error.__cause__ = problem
        return error

    def _way_out(self) -> str:
        if self._speaks:
            return " It is the main member, without which no answer can go on."
        return " With on_member_error='drop' requests go on without it."


def _joined(parts: Sequence[Said]) -> Said:
    """What was said to several groups of rows."""
    if len(parts) == 1:
        return parts[0]
    logits = [part.logits for part in parts if part.logits is not None]
    return Said([place for part in parts for place in part.at], torch.cat(logits) if logits else None)
