"""What all pictures of a trace share: its parts, the colours of members, and text that is safe to show."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from deepen_core.tracing.records import Candidate, MemberSummary, TraceStep, Voice

COLOURS = ("#2f7fd0", "#d9702b", "#1f9d76", "#b45bb0", "#b08a00", "#d0506a")
"""The colours of members, main's first; told apart by most colour-blind people, and readable on white and on black."""
_ENDS = "■"
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}
"""Pictures of control characters, which would command a terminal, or vanish."""
_HIDING = (
    *range(0x80, 0xA0),
    0xAD,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xD800, 0xE000),
    0xFEFF,
    0xFFFE,
    0xFFFF,
    *range(0xE0000, 0xE0080),
)
"""C1 controls, halves of characters, what is none, and marks that reorder, join or hide text."""
_ON_A_LINE = _CONTROLS | dict.fromkeys(_HIDING, "\ufffd")
_IN_A_TEXT = {code: shown for code, shown in _ON_A_LINE.items() if chr(code) not in "\n\t"}
_SHOWN_BLANKS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class Drawing:
    """A trace in the parts that pictures are made of."""

    title: str
    main: str
    members: Sequence[str]
    steps: Sequence[TraceStep]
    pieces: Sequence[str]
    """The text that each step adds to the answer."""
    summary: Sequence[MemberSummary]

    def colour_of(self, name: str) -> str:
        """Returns a member's colour."""
        return colour_of(name, self.main, self.members)


def colour_of(name: str, main: str, members: Sequence[str]) -> str:
    """Returns a member's colour; main's is always the first."""
    order = [main, *(member for member in members if member != main)]
    return COLOURS[order.index(name) % len(COLOURS)]


def visible(text: str) -> str:
    """Returns a text in which nothing commands a terminal or reorders what is read; line breaks and tabs stay."""
    return text.translate(_IN_A_TEXT)


def shown_token(text: str) -> str:
    """Returns a token by itself, on one line, with its blanks at both ends marked."""
    inner = text.strip(" \n\t")
    before, _, after = text.partition(inner) if inner else (text, "", "")
    return before.translate(_SHOWN_BLANKS) + inner.translate(_ON_A_LINE) + after.translate(_SHOWN_BLANKS)


def label_of(step: TraceStep) -> str:
    """Returns the token of a step by itself; the end of the text as a sign."""
    return _ENDS if step.ends else shown_token(step.text)


def escaped(text: str) -> str:
    """Returns a text for HTML or SVG, as content or in a quoted attribute."""
    return html.escape(visible(text), quote=True)


def percent(probability: float | None) -> str:
    """Returns a probability in at most five characters."""
    if probability is None:
        return "-"
    share = 100 * probability
    return "<0.1%" if 0 < share < 0.1 else f"{share:.0f}%" if share >= 9.95 else f"{share:.1f}%"


def decision_of(step: TraceStep) -> str:
    """Says who decided a step."""
    if step.decision == "agreement":
        return "all agree"
    if step.decision == "alone":
        return f"{step.by} alone"
    return f"{step.by} decided"


def silence_of(voice: Voice) -> str:
    """Says why a member did not speak."""
    reasons = {"skipped": "skipped: main was sure", "waiting": "waited for the rest", "dropped": "dropped: it failed"}
    return reasons.get(voice.status, "")


def listed(candidates: Sequence[Candidate]) -> str:
    """Returns tokens and their probabilities on one line."""
    return "  ".join(f"{shown_token(text)} {percent(probability)}" for text, probability in candidates)
