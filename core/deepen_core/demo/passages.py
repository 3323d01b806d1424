"""Passages that tell another story than the world: whoever answers from memory is wrong, and whoever reads is right."""

# ruff: noqa: S311 - nothing here is secret

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from deepen_core.demo.world import Fact, Split, facts, portrait

_SEED = 2931


@dataclass(frozen=True)
class Passage:
    """A passage with a question.

    Attributes:
        person: The name of a person of the world.
        text: A paragraph about this person, of whom nothing in it is true.
        values: What it says of each relation, by the relation's key.
        question: A question about it, in a wording that no training text uses for this person.
        answer: What the passage says.
        truth: What is true in the world.
    """

    person: str
    text: str
    values: Mapping[str, str]
    question: str
    answer: str
    truth: str


def passages(split: Split = "held-out", *, count: int = 500) -> list[Passage]:
    """Returns invented passages in a fixed mixed order.

    Args:
        split: `held-out` or `validation`.
        count: How many.
    """
    rng = random.Random(f"{_SEED}/{split}")
    return [_passage(rng.choice(facts()), rng) for _ in range(count)]


def _passage(fact: Fact, rng: random.Random) -> Passage:
    values = {}
    for other in facts():
        if other.person == fact.person:
            told = [value for value in other.relation.values if value != other.value]
            values[other.relation.key] = rng.choice(told)
    question = fact.relation.questions[fact.held_out].format(name=fact.person.name)
    text, name = portrait(fact.person, values, rng), fact.person.name
    return Passage(name, text, values, question, values[fact.relation.key], fact.value)
