"""The trace of one answer."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from typing_extensions import Self

from deepen_core.errors import TraceError
from deepen_core.tracing.drawing import Drawing
from deepen_core.tracing.html import page
from deepen_core.tracing.records import MemberSummary, TraceStep
from deepen_core.tracing.svg import picture


class Trace:
    """What each member would have said at each step of an answer, and what was chosen.

    Args:
        main: The name of the member whose vocabulary is used.
        members: The names of the members that take part, main among them.
        steps: The steps, or what makes them when they are first read.
    """

    def __init__(
        self, main: str, members: Sequence[str], steps: Sequence[TraceStep] | Callable[[], Sequence[TraceStep]]
    ) -> None:
        self.main = main
        self.members = tuple(members)
        self._source = steps

    @cached_property
    def steps(self) -> tuple[TraceStep, ...]:
        """One for each token of the answer in order, and one more if the ensemble ended the text.

        Tokens of a stop string that was cut off the answer are among them.
        """
        source = self._source
        return tuple(source() if callable(source) else source)

    def pieces(self) -> list[str]:
        """Returns the text that each step adds: that of a character which several tokens make is the last one's."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        found = []
        for number, step in enumerate(self.steps):
            last = number + 1 == len(self.steps)
            text = decoder.decode(step.token, final=last)
            found.append(text if step.token or step.ends else text + step.text)
        return found

    def summary(self) -> list[MemberSummary]:
        """Returns what each member did, in the members' order."""
        return [self._summary_of(number, name) for number, name in enumerate(self.members)]

    def _summary_of(self, number: int, name: str) -> MemberSummary:
        voices = [step.voices[number] for step in self.steps]
        spoke = [voice for voice in voices if voice.spoke]
        known = [voice.probability for voice in spoke if voice.probability]
        mean = math.exp(sum(map(math.log, known)) / len(known)) if known else None
        return MemberSummary(
            name,
            len(spoke),
            len(voices) - len(spoke),
            sum(step.by == name for step in self.steps),
            sum(voice.weight for voice in voices) / len(voices) if voices else 0.0,
            mean,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data, which JSON can hold."""
        return {"main": self.main, "members": list(self.members), "steps": [step.to_dict() for step in self.steps]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` returned, such as `response_metadata["trace"]` of a LangChain message.

        Raises:
            TraceError: If it is not a trace.
        """
        try:
            trace = cls(values["main"], values["members"], [TraceStep.from_dict(step) for step in values["steps"]])
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise TraceError(f"This is not a trace ({problem!r}): give what Trace.to_dict returned.") from problem
        for step in trace.steps:
            names = [voice.name for voice in step.voices]
            if tuple(names) != trace.members or {trace.main, step.by or trace.main} - set(names):
                raise TraceError(f"A step has the members {names}, but the trace {list(trace.members)}.")
        return trace

    def to_jsonl(self) -> str:
        """Returns it as JSON lines: the members in the first one, then a step a line."""
        lines = [{"main": self.main, "members": list(self.members)}, *(step.to_dict() for step in self.steps)]
        return "".join(json.dumps(line, ensure_ascii=True, separators=(",", ":")) + "\n" for line in lines)

    @classmethod
    def from_jsonl(cls, text: str) -> Self:
        """Reads what `to_jsonl` returned.

        Raises:
            TraceError: If it is not a trace.
        """
        try:
            head, *steps = [json.loads(line) for line in text.splitlines() if line]
            values = {**head, "steps": steps}
        except (TypeError, ValueError) as problem:
            raise TraceError(f"These are not the lines of a trace ({problem}).") from problem
        return cls.from_dict(values)

    def to_html(self, title: str = "") -> str:
        """Returns a page that shows the answer, each token coloured by who decided it.

        The members' most probable tokens show when a token is pointed at, touched or reached by the tab key. The page
        has no scripts and loads nothing; all text in it is escaped.

        Args:
            title: Stands above the answer, such as the question.
        """
        return page(self._drawing(title))

    def to_svg(self, title: str = "") -> str:
        """Returns a picture of the answer as SVG: a column for each token, with what each member would have said.

        Args:
            title: Stands above the answer, such as the question.
        """
        return picture(self._drawing(title))

    def _drawing(self, title: str) -> Drawing:
        return Drawing(title, self.main, self.members, self.steps, self.pieces(), self.summary())

    def __add__(self, later: Trace) -> Trace:
        """Joins the traces of two parts of an answer."""
        return Trace(self.main, self.members, lambda: (*self.steps, *later.steps))

    def __eq__(self, other: object) -> bool:
        """Whether another trace is of the same members and steps."""
        return isinstance(other, Trace) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # like the lists that it holds

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the steps, not what makes them."""
        return type(self), (self.main, self.members, self.steps)

    def __repr__(self) -> str:
        return f"<Trace of {len(self.steps)} steps of {' and '.join(self.members)}>"
