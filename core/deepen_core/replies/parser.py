"""Splits an answer into its parts as it is generated: thoughts, text, tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

from deepen_core.chat.thoughts import Thoughts
from deepen_core.chat.tool_format import CALL, CALL_END, tool_call_text
from deepen_core.replies.argument_bounds import ArgumentBounds
from deepen_core.replies.untagged import ARGUMENTS, may_become_call, untagged_call


class Check(Protocol):
    """Checks the arguments of one tool's calls, or the object that an answer is."""

    def problem(self, value: Any) -> str:
        """Returns what is wrong, or an empty string."""


@dataclass(frozen=True)
class Text:
    """A piece of the text."""

    text: str


@dataclass(frozen=True)
class Thought:
    """A piece of the thoughts before the text."""

    text: str


@dataclass(frozen=True)
class Call:
    """A complete tool call."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class CutCall:
    """A tool call that ended before it was complete; never run, and no text either."""

    text: str
    """All of it, from its tag on."""

    @property
    def name(self) -> str | None:
        """The tool's name, if it was complete."""
        found = _NAMED.match(self.text)
        try:
            return json.loads(found[1], strict=False) if found else None
        except ValueError:  # an escape that JSON does not have
            return None


@dataclass(frozen=True)
class BrokenCall:
    """A complete tool call whose arguments break its schema where decoding could not follow it; never run."""

    name: str
    text: str
    """All of it, with its tags."""
    problem: str
    """What it breaks, and where."""


Part = Text | Thought | Call | CutCall | BrokenCall
_NONE = Thoughts()
Checks = Mapping[str | None, "Check"]
_State = Literal["start", "thoughts", "body", "untagged", "text", "call"]
_DECODER = json.JSONDecoder(strict=False)
_NAMED = re.compile(rf'{CALL}\s*\{{\s*"name":\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class Reply:
    """A complete answer."""

    text: str
    thoughts: str
    calls: tuple[Call, ...]
    cut: CutCall | None = None
    broken: tuple[BrokenCall, ...] = ()


class ReplyParser:
    """Takes an answer in pieces, however they are cut, and returns its parts as soon as they are certain.

    A call is returned once its tag is closed and it is valid: JSON with the name of a known tool and an object of
    arguments. At the beginning of an answer it may lack its tag, alone, in a code fence or in `<tools>`. A call that is
    not complete at the end is a part of its own, so that no half-written call is ever run or shown. A call that the
    answer has already made with the same arguments is dropped with a warning: small models often repeat themselves.
    Everything else is text. White space around tags belongs to no part.

    Args:
        names: The tools that may be called; without any, call tags are text.
        thoughts: Those with which the answer may begin.
        has_text: Whether the answer may be a text. If not, the beginning of a tag at the end is a call's.
        untagged: Whether calls may lack their tag.
        bounds: Of arguments, for `warnings`.
        checks: What checks the arguments of a tool's calls, by its name, where decoding does not follow all of its
            schema; under None, what checks an answer that is an object.

    Attributes:
        warnings: The arguments so far that reached their bound, and may be incomplete; the calls that were repeated;
            and at the end, how an answer that is an object breaks its schema.
    """

    def __init__(
        self,
        names: Collection[str] = (),
        thoughts: Thoughts = _NONE,
        *,
        has_text: bool = True,
        untagged: bool = True,
        bounds: ArgumentBounds | None = None,
        checks: Checks = MappingProxyType({}),
    ) -> None:
        self.warnings: list[str] = []
        self._bounds = bounds
        self._checks = checks
        self._names = frozenset(names)
        self._has_text = has_text
        self._untagged = untagged and bool(names)
        self._marks = thoughts.marks
        states: dict[str, _State] = {"optional": "start", "opened": "thoughts"}
        self._state: _State = states.get(thoughts.mode, "body")
        self._held = ""
        self._skips = thoughts.mode == "opened"  # whether white space after a tag is being skipped
        self._gap = ""  # white space before the call that is being parsed
        self._searched = 0  # characters of the call that have been searched for its end
        self._fence = ""  # what may still end the text around a call
        self._said: list[str] = []  # the text, if it is checked at the end
        self._called: set[str] = set()  # the text of each call, without white space
        self._repeated: set[str] = set()  # the calls that were repeated

    def feed(self, piece: str) -> list[Part]:
        """Adds a piece and returns the parts that are now certain."""
        self._held += piece
        return list(self._parts(last=False))

    def finish(self) -> list[Part]:
        """Returns the rest, once there is no more to come."""
        parts = list(self._parts(last=True))
        check = self._checks.get(None)
        if check is not None and (problem := _broken("".join(self._said), check)):
            self.warnings.append(f"The answer breaks its schema where decoding cannot follow it: {problem}")
        return parts

    def _parts(self, *, last: bool) -> Iterator[Part]:
        while True:
            before = self._state, len(self._held)
            if self._skips:
                self._held = self._held.lstrip()
                self._skips = not self._held
            if self._fence and self._held and not self._ended(last=last):
                return
            part = self._next(last=last)
            if isinstance(part, Text) and None in self._checks:
                self._said.append(part.text)
            if isinstance(part, Call):
                part = None if self._repeats(part) else self._checked(part)
            elif isinstance(part, CutCall) and any(
                call.startswith(_without_spaces(part.text)) for call in self._repeated
            ):
                part = None
            if part is not None:
                yield part
            if (self._state, len(self._held)) == before:
                return

    def _ended(self, *, last: bool) -> bool:
        """Whether it is certain if what stands around a call has ended; its end is dropped."""
        if self._held.startswith(self._fence):
            self._held, self._skips = self._held.removeprefix(self._fence).lstrip(), True
        elif self._fence.startswith(self._held):
            if not last:
                return False
            self._held = ""
        self._fence = ""
        return True

    def _next(self, *, last: bool) -> Part | None:
        if self._state in ("start", "body"):
            begin = self._begin if self._state == "start" else self._open
            begin(last=last)
            return None
        readers = {"thoughts": self._read_thoughts, "untagged": self._read_untagged, "call": self._read_call}
        return readers.get(self._state, self._read_text)(last=last)

    def _read_thoughts(self, *, last: bool) -> Part | None:
        # Where a mark stands before the answer, more thoughts may come before it.
        thought = self._upto(self._marks.end, "start" if self._marks.answer else "body", last=last)
        return Thought(thought) if thought else None

    def _read_text(self, *, last: bool) -> Part | None:
        if not self._names:
            text, self._held = self._held, ""
        else:
            text = self._upto(CALL, "call", last=last)
        if last and not self._has_text and text and CALL.startswith(text.lstrip()):
            return CutCall(text.lstrip())
        return Text(text) if text else None

    def _begin(self, *, last: bool) -> None:
        marks, said = self._marks, self._held.lstrip()
        turn = marks.turn if marks.turn and said.startswith(marks.turn) else ""
        said = said.removeprefix(turn)
        if said.startswith(marks.begin):
            self._state, self._held, self._skips = "thoughts", said.removeprefix(marks.begin), True
        elif marks.answer and said.startswith(marks.answer):
            self._state, self._held, self._skips = "body", said.removeprefix(marks.answer), True
        elif last or not any(mark.startswith(said) for mark in marks.parts()):
            self._state = "body"

    def _open(self, *, last: bool) -> None:
        if not self._untagged:
            self._state = "text"
        elif untagged_call(self._held, self._names):
            self._state = "untagged"
        elif last or not may_become_call(self._held, self._names):
            self._state = "text"

    def _read_untagged(self, *, last: bool) -> Part | None:
        end, place = untagged_call(self._held, self._names) or ("", 0)
        if "}" not in self._held[self._searched :] and not last:
            return None
        self._searched = len(self._held)
        try:
            said, stop = _DECODER.raw_decode(self._held, place)
        except (ValueError, RecursionError):
            if not last:
                return None
            cut, self._held, self._state = CutCall(f"{CALL}\n{self._held[place:]}"), "", "text"
            return cut
        self._state, self._searched = "text", 0
        call = self._call(said)
        if call is None:
            text, self._held = self._held[:stop], self._held[stop:]
            return Text(text)
        # The end of the fence may still come; it is of no part.
        self._held, self._fence, self._skips = self._held[stop:], end, True
        return call

    def _upto(self, tag: str, state: _State, *, last: bool) -> str:
        """Returns the text before a tag, as far as it is certain; after the tag, `state` begins."""
        before, found, after = self._held.partition(tag)
        if found:
            shown = before.rstrip()
            self._gap = before[len(shown) :]
            self._state, self._held, self._searched, self._skips = state, after, 0, state != "call"
            return shown
        if last:
            self._held = ""
            return before
        shown = before[: len(before) - _begun(before, tag)].rstrip()
        self._held = before[len(shown) :]
        return shown

    def _read_call(self, *, last: bool) -> Part | None:
        end = self._held.find(CALL_END, self._searched)
        while end >= 0:
            try:
                call = self._call(json.loads(self._held[:end], strict=False))
            except json.JSONDecodeError as problem:
                if problem.msg.startswith("Unterminated string"):  # the tag is part of an argument
                    end = self._held.find(CALL_END, end + 1)
                    continue
                call = None
            except (ValueError, RecursionError):  # a number of thousands of digits, or thousandfold nesting
                call = None
            said = self._gap + CALL + self._held[: end + len(CALL_END)]
            self._held = self._held[end + len(CALL_END) :]
            self._state, self._skips = "text", call is not None
            return call or Text(said)
        if last:
            said, self._held, self._state = CALL + self._held, "", "text"
            return CutCall(said)
        self._searched = max(0, len(self._held) - len(CALL_END) + 1)
        return None

    def _repeats(self, call: Call) -> bool:
        """Whether the answer has already made this call. Calls without arguments may repeat, such as rolling dice."""
        said = _without_spaces("".join(tool_call_text(call.name, call.arguments)))
        if said not in self._called or not call.arguments:
            self._called.add(said)
            return False
        if said not in self._repeated:
            self._repeated.add(said)
            self.warnings.append(
                f"The answer calls {call.name!r} several times with equal arguments; one call is kept."
            )
        return True

    def _checked(self, call: Call) -> Call | BrokenCall:
        check = self._checks.get(call.name)
        problem = check.problem(call.arguments) if check is not None else ""
        if not problem:
            return call
        text = "".join(tool_call_text(call.name, call.arguments))
        return BrokenCall(call.name, text, problem)

    def _call(self, said: Any) -> Call | None:
        if not isinstance(said, dict):
            return None
        name, arguments = said.get("name"), next((said[field] for field in ARGUMENTS if field in said), None)
        if isinstance(name, str) and name in self._names and isinstance(arguments, dict):
            if self._bounds is not None:
                self.warnings += self._bounds.warnings(name, arguments)
            return Call(name, arguments)
        return None


def parse_reply(text: str, parser: ReplyParser) -> Reply:
    """Parses a complete answer with a fresh parser."""
    parts = [*parser.feed(text), *parser.finish()]
    return Reply(
        "".join(part.text for part in parts if isinstance(part, Text)),
        "".join(part.text for part in parts if isinstance(part, Thought)),
        tuple(part for part in parts if isinstance(part, Call)),
        next((part for part in parts if isinstance(part, CutCall)), None),
        tuple(part for part in parts if isinstance(part, BrokenCall)),
    )


def _broken(text: str, check: Check) -> str:
    """Returns how an answer breaks its schema, or an empty string; also if it is not JSON or was cut off."""
    try:
        said = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return ""
    return check.problem(said)


def _without_spaces(call: str) -> str:
    """Returns a call without its white space, which differs between models."""
    return "".join(call.split())


def _begun(text: str, tag: str) -> int:
    """Returns how many characters at the end of a text may be the beginning of a tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
