"""The records of a trace: plain data, as Python objects and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from typing_extensions import Self

Status = Literal["spoke", "skipped", "waiting", "dropped"]
Decision = Literal["alone", "agreement", "main", "other"]


class Candidate(NamedTuple):
    """A token that was possible."""

    text: str
    """Its text; bytes that are not UTF-8 by themselves are written as escapes, such as `\\xe2`."""
    probability: float


@dataclass(frozen=True)
class Voice:
    """What one member said at a step."""

    name: str
    status: Status
    """"spoke"; "skipped" if a gate let main decide alone; "waiting" inside a character or a mark of thoughts that only
    main writes; "dropped" if the member failed before."""
    weight: float
    """Its share in this step; those of all members sum to one."""
    probability: float | None
    """How probable it finds the chosen token, as main hears it: what the answer's probability would be if only this
    member counted. None if it did not speak, or has nothing that corresponds to the token."""
    heard: tuple[Candidate, ...] = ()
    """Its most probable tokens in main's vocabulary, best first. A strategy over shared tokens reads them after token
    healing, so they are what the member says even where its own text ends inside one of its tokens; a token stands for
    the longer ones of main's that begin with it and have no counterpart. For other strategies: its own most probable
    tokens, each as the longest of main's tokens that it begins with."""
    own: tuple[Candidate, ...] = ()
    """The most probable tokens of its own vocabulary, best first."""
    after: str = ""
    """The token of its own vocabulary with which its text ended; `own` are what it says after that one."""

    @property
    def spoke(self) -> bool:
        """Whether it was asked and answered."""
        return self.status == "spoke"

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON holds it."""
        found: dict[str, Any] = {"name": self.name, "status": self.status, "weight": _rounded(self.weight)}
        if not self.spoke:
            return found
        probability = None if self.probability is None else _rounded(self.probability)
        return {
            **found,
            "probability": probability,
            "heard": _pairs(self.heard),
            "own": _pairs(self.own),
            "after": self.after,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` returned."""
        return cls(
            values["name"],
            values["status"],
            values["weight"],
            values.get("probability"),
            _candidates(values.get("heard", ())),
            _candidates(values.get("own", ())),
            values.get("after", ""),
        )


@dataclass(frozen=True)
class TraceStep:
    """One step of an answer: a token, or the end of the text."""

    token_id: int
    """Main's id."""
    token: bytes
    """Its bytes; empty for a control token."""
    text: str
    """The token by itself, as in `Candidate.text`; a control token as it is spelled."""
    ends: bool
    """Whether it ended the text, so that it is not part of the answer."""
    probability: float
    """Fused, before temperature, truncation, penalties and a constraint's mask; so are all others."""
    main_probability: float
    """Under main alone."""
    moved: float
    """How far fusion moved main's distribution: their total variation distance, from 0 to 1."""
    decision: Decision
    """Who decided: see `by`. "alone" if no other member spoke; "agreement" if the token is the most probable one of
    every member that spoke; "other" if it is not main's most probable one and fusion made it more probable than main
    does; else "main"."""
    by: str | None
    """The member that decided: main for "alone" and "main"; for "other" the one with the largest share in the token's
    probability, its weight times `Voice.probability`; None for "agreement"."""
    top: tuple[Candidate, ...]
    """The most probable tokens after fusion, best first."""
    voices: tuple[Voice, ...]
    """The members that take part, in their order."""

    @property
    def is_likeliest(self) -> bool:
        """Whether the most probable token was chosen, rather than another by sampling, a penalty or a constraint."""
        return not self.top or self.top[0].text == self.text or self.probability >= self.top[0].probability

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON holds it."""
        found: dict[str, Any] = {"token_id": self.token_id, "text": self.text}
        if self.token and "\\x" in self.text:
            found["bytes"] = list(self.token)
        if not self.token:
            found["control"] = True
        if self.ends:
            found["ends"] = True
        return {
            **found,
            "decision": self.decision,
            "by": self.by,
            "probability": _rounded(self.probability),
            "main_probability": _rounded(self.main_probability),
            "moved": _rounded(self.moved),
            "top": _pairs(self.top),
            "members": [voice.to_dict() for voice in self.voices],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` returned."""
        plain = b"" if values.get("control") else values["text"].encode("utf-8", "surrogatepass")
        return cls(
            values["token_id"],
            bytes(values["bytes"]) if "bytes" in values else plain,
            values["text"],
            values.get("ends", False),
            values["probability"],
            values["main_probability"],
            values["moved"],
            values["decision"],
            values["by"],
            _candidates(values["top"]),
            tuple(map(Voice.from_dict, values["members"])),
        )


@dataclass(frozen=True)
class MemberSummary:
    """What one member did in a whole answer."""

    name: str
    spoke: int
    """Steps in which it spoke."""
    silent: int
    """Steps in which it did not: a gate skipped it, it waited, or had failed."""
    decided: int
    """Steps that it decided, alone or over others."""
    weight: float
    """Its mean share over all steps."""
    probability: float | None
    """Geometric mean of the probability that it gave to the chosen tokens where it spoke; None if that is not known."""


def _pairs(candidates: Sequence[Candidate]) -> list[list[Any]]:
    return [[candidate.text, _rounded(candidate.probability)] for candidate in candidates]


def _candidates(pairs: Sequence[Sequence[Any]]) -> tuple[Candidate, ...]:
    return tuple(Candidate(text, probability) for text, probability in pairs)


def _rounded(value: float) -> float:
    """Returns a number with the digits that say something: six of them."""
    return float(f"{value:.6g}")
