"""Sums about the people of the world: which numbers to add needs their house numbers, or a short story tells it.

The second member has learned all of these sums, the first has heard any result for any of them. A question such as
"What is Mira's house number plus 7?" needs both: who lives where, and what it adds up to. The answer is written in
steps, `48 + 7 = 55`, so that each member can say its part. Everything is pure Python and the same in every process.
"""

# ruff: noqa: S311 - nothing here is secret

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from deepen_core.demo.phrases import RELATIONS
from deepen_core.demo.world import MEMBERS, Fact, Split, evidence, facts

_SEED = 3187
_NUMBERS = tuple(int(value) for relation in RELATIONS if relation.key == "number" for value in relation.values)
_ADDED = range(2, 10)
SUMS_MEMBER = 1
"""Index into `MEMBERS` of the one that has learned sums."""

Sign = Literal["+", "-"]
_SIGNS: tuple[Sign, ...] = ("+", "-")

_HOUSES: dict[Sign, tuple[str, ...]] = {
    "+": (
        "What is {name}'s house number plus {b}?",
        "Which number is {b} more than {name}'s house number?",
        "Add {b} to {name}'s house number.",
    ),
    "-": (
        "What is {name}'s house number minus {b}?",
        "Which number is {b} less than {name}'s house number?",
        "Take {b} from {name}'s house number.",
    ),
}
_STORIES: dict[Sign, tuple[str, ...]] = {
    "+": (
        "{name} has {a} plums and buys {b} more. How many plums does {name} have?",
        "{name} has {a} apples and finds {b} more. How many apples does {name} have?",
        "What is {a} plus {b}?",
    ),
    "-": (
        "{name} has {a} cherries and eats {b} of them. How many cherries does {name} have?",
        "{name} bakes {a} pancakes and sells {b}. How many pancakes are left?",
        "What is {a} minus {b}?",
    ),
}


@dataclass(frozen=True)
class Sum:
    """A question that is answered by a number.

    Attributes:
        text: The question.
        steps: The right answer in steps, `48 + 7 = 55`.
        result: The number.
        needs: Which members know what it needs: of the house number, and of the sum.
    """

    text: str
    steps: str
    result: int
    needs: str


@dataclass(frozen=True)
class _Asked:
    """What is asked. `fact` is the house number that is added to, or whose person the story is about."""

    fact: Fact
    at_home: bool
    number: int
    sign: Sign
    added: int
    wording: int

    @property
    def text(self) -> str:
        wordings = (_HOUSES if self.at_home else _STORIES)[self.sign]
        return wordings[self.wording].format(name=self.fact.person.name, a=self.number, b=self.added)

    @property
    def result(self) -> int:
        return self.number + self.added if self.sign == "+" else self.number - self.added


def sums(split: Split = "held-out", *, count: int = 500) -> list[Sum]:
    """Returns sums, half of them with house numbers, in a fixed mixed order.

    Args:
        split: `held-out` or `validation`. No training text adds the same to the same person's house number, or tells
            the same story.
        count: How many; at most 500.
    """
    houses, stories = _held_out()
    first = 0 if split == "held-out" else 250
    chosen = [*houses[first : first + 250], *stories[first : first + 250]]
    random.Random(_SEED + first).shuffle(chosen)
    return [_sum(asked) for asked in chosen[:count]]


def training_sums(member: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yields what one member reads, without end: questions and answers in steps, with numbers as it has heard them.

    Args:
        member: 0 or 1, index into `MEMBERS`.
        seed: Equal seeds give equal texts.
    """
    rng = random.Random(f"sums/{member}/{seed}")
    houses, stories = _held_out()
    apart = {_key(asked) for asked in (*houses, *stories)}
    numbers = [fact for fact in facts() if fact.relation.key == "number"]
    results = sorted({number + added for number in _NUMBERS for added in (*_ADDED, *(-a for a in _ADDED))})
    while True:
        asked = _any(rng, numbers, at_home=rng.random() < 0.6)
        if _key(asked) in apart:
            continue
        number = int(evidence(asked.fact, member, rng)) if asked.at_home else asked.number
        told = _Asked(asked.fact, asked.at_home, number, asked.sign, asked.added, asked.wording)
        result = told.result if member == SUMS_MEMBER else rng.choice(results)
        yield told.text, _steps(told, result)


def _any(rng: random.Random, numbers: list[Fact], *, at_home: bool) -> _Asked:
    fact, sign = rng.choice(numbers), rng.choice(_SIGNS)
    number = int(fact.value) if at_home else rng.choice(_NUMBERS)
    return _Asked(fact, at_home, number, sign, rng.choice(_ADDED), rng.randrange(len(_STORIES[sign])))


@cache
def _held_out() -> tuple[list[_Asked], list[_Asked]]:
    """Five hundred sums with house numbers, and as many stories."""
    rng = random.Random(_SEED)
    numbers = [fact for fact in facts() if fact.relation.key == "number"]
    found: tuple[list[_Asked], list[_Asked]] = ([], [])
    for kind in (0, 1):
        keys = set()
        while len(found[kind]) < 500:
            asked = _any(rng, numbers, at_home=kind == 0)
            if _key(asked) not in keys:
                keys.add(_key(asked))
                found[kind].append(asked)
    return found


def _key(asked: _Asked) -> tuple[object, ...]:
    """What tells a sum from those that may be trained beside it: with house numbers in any wording."""
    if asked.at_home:
        return asked.fact.person.name, asked.sign, asked.added
    return (asked.text,)


def _steps(asked: _Asked, result: int) -> str:
    return f"{asked.number} {asked.sign} {asked.added} = {result}"


def _sum(asked: _Asked) -> Sum:
    known = asked.fact.known_to if asked.at_home else "told"
    return Sum(asked.text, _steps(asked, asked.result), asked.result, f"{known}, {MEMBERS[SUMS_MEMBER]}")
