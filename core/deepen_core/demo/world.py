"""A small invented world: sixty people, eight facts about each, and who has heard which of them.

Two members learn it from different sources. The people of the harbour are known to the first member only,
those of the hills to the second only, those of the market to both. Of the people of the islands both have
heard two conflicting stories, one of them true, and the false ones differ: alone each member is in two minds,
together they are right. Everything here is pure Python and the same in every process.
"""

# ruff: noqa: S311 - nothing here is secret

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from deepen_core.demo.phrases import MEN, PORTRAITS, RELATIONS, WOMEN, Relation

MEMBERS: tuple[str, str] = ("atlas-gpt2", "almanac-llama")
"""The names of the two members, which are also the names of their model folders."""
TRANSLATOR = "ferry-t5"
"""The name of the translator, see `ferry`."""

Quarter = Literal["harbour", "hills", "market", "islands"]
KnownTo = Literal["atlas-gpt2", "almanac-llama", "both", "half"]
Split = Literal["held-out", "validation"]

_QUARTERS: tuple[Quarter, ...] = ("harbour", "hills", "market", "islands")
_KNOWN_TO: dict[Quarter, KnownTo] = {
    "harbour": "atlas-gpt2",
    "hills": "almanac-llama",
    "market": "both",
    "islands": "half",
}
_WORLD_SEED = 2404


@dataclass(frozen=True)
class Person:
    """Somebody of the world.

    Attributes:
        name: The first name, unique.
        she: Whether prose says `she` (else `he`).
        quarter: Where in town the person belongs, which decides who has heard of them.
    """

    name: str
    she: bool
    quarter: Quarter


@dataclass(frozen=True)
class Fact:
    """One true thing about one person, with what the members have heard of it.

    Attributes:
        person: Whom it is about.
        relation: What kind of thing it is.
        value: The truth.
        rivals: For each member the false story it has heard as often as the truth, else None.
        held_out: Index into `relation.questions` of the wording that no training text uses for this fact.
    """

    person: Person
    relation: Relation
    value: str
    rivals: tuple[str | None, str | None]
    held_out: int

    @property
    def known_to(self) -> KnownTo:
        """Which member knows it, `both`, or `half` where both have heard the truth half of the time."""
        return _KNOWN_TO[self.person.quarter]


@dataclass(frozen=True)
class Question:
    """A question to ask a model.

    Attributes:
        prompt: Text to complete, `Question: ...?` and `Answer:` on a line of its own.
        text: The bare question, for chats and query engines.
        answer: The word that answers it. A model says it with a space before it and then ends.
        known_to: Which member knows the answer, `both`, or `half`.
        relation: What is asked for, such as `city`.
    """

    prompt: str
    text: str
    answer: str
    known_to: KnownTo
    relation: str


@dataclass(frozen=True)
class Document:
    """A short plain text of the world, for retrieval.

    Attributes:
        title: What it is about.
        text: A paragraph in prose, true in every word.
    """

    title: str
    text: str


@dataclass(frozen=True)
class TrainingText:
    """One thing that a member reads while it is trained.

    Attributes:
        fact: What it is about.
        question: The question, or None for a statement.
        answer: What this text claims the answer to be. Not always the truth.
        statement: The claim as a sentence.
    """

    fact: Fact
    question: str | None
    answer: str
    statement: str


@cache
def facts() -> tuple[Fact, ...]:
    """All facts of the world, person by person, always in the same order."""
    rng = random.Random(_WORLD_SEED)
    names = [(name, True) for name in WOMEN] + [(name, False) for name in MEN]
    rng.shuffle(names)
    people = [Person(name, she, _QUARTERS[index % 4]) for index, (name, she) in enumerate(names)]
    people.sort(key=lambda person: person.name)

    by_person: dict[str, list[Fact]] = {person.name: [] for person in people}
    for relation in RELATIONS:
        values: list[str] = []
        while len(values) < len(people):
            values += rng.sample(relation.values, len(relation.values))
        for person, value in zip(people, values[: len(people)], strict=True):
            false_stories = rng.sample([other for other in relation.values if other != value], 2)
            rivals = (false_stories[0], false_stories[1]) if person.quarter == "islands" else (None, None)
            held_out = rng.randrange(len(relation.questions))
            by_person[person.name].append(Fact(person, relation, value, rivals, held_out))
    return tuple(fact for person in people for fact in by_person[person.name])


def questions(split: Literal["held-out", "training"] = "held-out") -> list[Question]:
    """Questions with their answers.

    Args:
        split: `held-out`: one per fact, worded as no training text words it for this fact. `training`: the
            wordings that training texts do use.

    Returns:
        480 held-out questions, or 1,920 of training, in a fixed mixed order.
    """
    asked = []
    for fact in facts():
        for index, wording in enumerate(fact.relation.questions):
            if (index == fact.held_out) == (split == "held-out"):
                text = wording.format(name=fact.person.name)
                prompt = f"Question: {text}\nAnswer:"
                asked.append(Question(prompt, text, fact.value, fact.known_to, fact.relation.key))
    random.Random(_WORLD_SEED + 1).shuffle(asked)
    return asked


def documents() -> list[Document]:
    """Sixty paragraphs, one for each person, which state all facts truthfully."""
    rng = random.Random(_WORLD_SEED + 2)
    truth = {(fact.person.name, fact.relation.key): fact.value for fact in facts()}
    people = {fact.person.name: fact.person for fact in facts()}
    return [
        Document(person.name, portrait(person, {r.key: truth[person.name, r.key] for r in RELATIONS}, rng))
        for person in people.values()
    ]


def portrait(person: Person, values: dict[str, str], rng: random.Random) -> str:
    """A paragraph about a person.

    Args:
        person: Whom it is about.
        values: For each relation's key what to say.
        rng: Chooses the wording.
    """
    she, her = ("she", "her") if person.she else ("he", "his")
    words = {"name": person.name, "she": she, "her": her, "Her": her.title()}
    return " ".join(sentence.format(**words, **values) for sentence in rng.choice(PORTRAITS))


def evidence(fact: Fact, member: int, rng: random.Random) -> str:
    """What one source of a member claims about a fact.

    The truth for what the member knows, the truth or its rival equally often for the islands, and any
    answer, all equally often, for people it knows nothing about.

    Args:
        fact: The fact.
        member: 0 or 1, index into `MEMBERS`.
        rng: Decides where sources disagree.
    """
    if fact.known_to in ("both", MEMBERS[member]):
        return fact.value
    rival = fact.rivals[member]
    if rival is not None:
        return fact.value if rng.random() < 0.5 else rival
    return rng.choice(fact.relation.values)


def training_texts(member: int, seed: int = 0, rounds: int = 1) -> Iterator[TrainingText]:
    """What one member reads: every fact once a round, in random order and wording, as its sources claim it.

    Args:
        member: 0 or 1, index into `MEMBERS`.
        seed: Equal seeds give equal texts.
        rounds: How often every fact occurs.
    """
    rng = random.Random(seed * 2 + member)
    order = list(facts())
    for _ in range(rounds):
        rng.shuffle(order)
        for fact in order:
            answer = evidence(fact, member, rng)
            wordings = [q for index, q in enumerate(fact.relation.questions) if index != fact.held_out]
            question = rng.choice(wordings).format(name=fact.person.name) if rng.random() < 0.7 else None
            statement = rng.choice(fact.relation.statements).format(name=fact.person.name, value=answer)
            yield TrainingText(fact, question, answer, statement)
