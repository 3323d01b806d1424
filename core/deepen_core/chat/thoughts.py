"""The marks between which models write their thoughts before an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Thinking = Literal["never", "optional", "opened"]


@dataclass(frozen=True)
class ThoughtMarks:
    """How a family of models marks thoughts."""

    begin: str
    """Before thoughts."""
    end: str
    """After them."""
    turn: str = ""
    """What follows `end` before the next part: more thoughts, or the answer."""
    answer: str = ""
    """Before the answer."""

    def parts(self) -> Iterator[str]:
        """Yields each mark that is not empty."""
        yield from filter(None, (self.begin, self.end, self.turn, self.answer))


THINK = ThoughtMarks("<think>", "</think>")
KNOWN_MARKS = (
    THINK,  # DeepSeek, GLM, Granite, MiniMax, Nemotron, Qwen, SmolLM3
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral
    ThoughtMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtMarks("<thought>", "</thought>"),
    ThoughtMarks("<thinking>", "</thinking>"),
    ThoughtMarks("<|channel>thought\n", "<channel|>"),  # Gemma 4
    ThoughtMarks(  # gpt-oss
        "<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant", "<|channel|>final<|message|>"
    ),
)


@dataclass(frozen=True)
class Thoughts:
    """Whether a model thinks before it answers, and how it marks its thoughts."""

    mode: Thinking = "never"
    """"opened": the chat template itself begins them, so the answer holds no mark before them; "optional": the model
    may begin them; "never": there are none."""
    marks: ThoughtMarks = THINK
    control: Mapping[str, int] = field(default_factory=dict)
    """Ids of the control tokens in the marks; all else in them is text."""

    def terms(self, mark: str) -> Iterator[str | int]:
        """Splits a mark into its texts and the ids of its control tokens."""
        while mark:
            places = {token: mark.find(token) for token in self.control if token in mark}
            token = min(places, key=lambda t: (places[t], -len(t)), default="")
            if not token:
                yield mark
                return
            if places[token]:
                yield mark[: places[token]]
            yield self.control[token]
            mark = mark[places[token] + len(token) :]


def marks_of(template: str) -> ThoughtMarks | None:
    """Returns the marks that a chat template knows, or None if it knows none."""
    for marks in KNOWN_MARKS:
        # Some templates only cut thoughts off. The end of gpt-oss's thoughts ends turns of other models.
        if marks.end in template and (marks.begin in template or not marks.turn):
            return marks
    return None


def begun_marks(rendered: str) -> ThoughtMarks | None:
    """Returns the marks of thoughts that the end of a rendered conversation begins, or None."""
    said = rendered.rstrip()
    return next((marks for marks in KNOWN_MARKS if said.endswith(marks.begin.rstrip())), None)


class MarkListener:
    """Keeps marks that begin with a control token from the other members, which write theirs in another way.

    Inside such a mark, main is asked alone.

    Args:
        thoughts: Main's.
    """

    def __init__(self, thoughts: Thoughts) -> None:
        self._marks = [mark for mark in thoughts.marks.parts() if any(mark.startswith(t) for t in thoughts.control)]
        self._begun = ""  # a mark, as far as it was written
        self._withheld = ""  # texts in it

    @property
    def inside(self) -> bool:
        """Whether a mark has begun and not ended."""
        return bool(self._begun)

    def control(self, token: str) -> None:
        """Adds a control token of main's."""
        follows = any(mark.startswith(self._begun + token) for mark in self._marks)
        begins = any(mark.startswith(token) for mark in self._marks)
        self._begun = self._begun + token if follows else token if begins else ""
        self._withheld = ""
        self._end_if_whole()

    def text(self, text: str) -> str:
        """Adds a text of main's, and returns what the other members hear of it."""
        if not self._begun or not text:
            return text
        said, withheld = self._begun + text, self._withheld + text
        if any(mark.startswith(said) for mark in self._marks):
            self._begun, self._withheld = said, withheld
            self._end_if_whole()
            return ""
        whole = max((mark for mark in self._marks if said.startswith(mark)), key=len, default="")
        self._begun = self._withheld = ""
        return said[len(whole) :] if whole else withheld

    def _end_if_whole(self) -> None:
        if self._begun in self._marks:
            self._begun = self._withheld = ""
