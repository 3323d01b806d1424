"""Ferrish, the language of the ferrymen: an invented language in which everything about the world can be said.

A sentence is one fact, said backwards: what it is, then the verb, then whom it is about. Its words take endings::

    ravikuen   melu-sh-a   Mira-va.
    value      verb        person

The value has the ending of its kind (`-en` for places, `-i` for the living, `-o` for things). The verb has a mood for
each of the four English wordings of a relation, and agrees with the person, who is marked too (`-va` her, `-vo` him).

Most words for values mean two of them: whoever reads only the sentence cannot say which, and whoever knows the person
can. Everything is pure Python and the same in every process.
"""

# ruff: noqa: S311 - nothing here is secret

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from deepen_core.demo.phrases import RELATIONS, Relation
from deepen_core.demo.world import Fact, KnownTo, Person, Split, facts

_SEED = 1871
_ENDINGS = {"city": "en", "job": "i", "pet": "i"}
_THING = "o"
_MOODS = ("sh", "tel", "m", "rik")
_CERTAIN = 4
"""So many values of a relation have a word of their own; the others share one with another value."""


@dataclass(frozen=True)
class Translation:
    """A sentence in both languages.

    Attributes:
        source: In Ferrish.
        target: In English, the only right translation.
        relation: What it says of the person, such as `city`.
        ambiguous: Whether its value's word has another meaning, too.
        known_to: Which causal member knows the fact, `both`, or `half`.
    """

    source: str
    target: str
    relation: str
    ambiguous: bool
    known_to: KnownTo


@dataclass(frozen=True)
class Lexicon:
    """The words.

    Attributes:
        verbs: For each relation's key the stem of its verb.
        nouns: For each relation's key and value the stem of the value's word.
    """

    verbs: dict[str, str]
    nouns: dict[tuple[str, str], str]

    def ambiguous(self, relation: Relation, value: str) -> bool:
        """Returns whether the value's word means another value of the relation, too."""
        stem = self.nouns[relation.key, value]
        return sum(self.nouns[relation.key, other] == stem for other in relation.values) > 1


@cache
def lexicon() -> Lexicon:
    """Returns the words of the language, always the same."""
    rng = random.Random(_SEED)
    syllables = [first + vowel for first in "bdfghklmnprstvz" for vowel in "aeiou"]
    used: set[str] = set()

    def word(length: int) -> str:
        while (made := "".join(rng.choices(syllables, k=length))) in used:
            pass
        used.add(made)
        return made

    verbs = {relation.key: word(2) for relation in RELATIONS}
    nouns: dict[tuple[str, str], str] = {}
    for relation in RELATIONS:
        values = rng.sample(relation.values, len(relation.values))
        for index, value in enumerate(values):
            shares = index >= _CERTAIN and (index - _CERTAIN) % 2
            nouns[relation.key, value] = nouns[relation.key, values[index - 1]] if shares else word(3)
    return Lexicon(verbs, nouns)


def sentence(person: Person, relation: Relation, wording: int, value: str) -> tuple[str, str]:
    """Says something of a person, true or not.

    Args:
        person: Of whom.
        relation: What kind of thing.
        wording: Index into `relation.statements`.
        value: What.

    Returns:
        The sentence in Ferrish and in English.
    """
    words = lexicon()
    noun = words.nouns[relation.key, value] + _ENDINGS.get(relation.key, _THING)
    verb = words.verbs[relation.key] + _MOODS[wording]
    ending = "a" if person.she else "o"
    english = relation.statements[wording].format(name=person.name, value=value)
    return f"{noun} {verb}{ending} {person.name}-v{ending}.", english


def translations(split: Split = "held-out", *, count: int = 500) -> list[Translation]:
    """Returns true sentences to translate, in a fixed mixed order.

    Args:
        split: `held-out` or `validation`. No training text says this about this person in this wording, whatever the
            value, so that the wording does not tell the value.
        count: How many; at most 500.
    """
    place = 0 if split == "held-out" else 1
    return [_translation(fact, wording) for fact, wording in _places()[500 * place : 500 * (place + 1)][:count]]


def training_pairs(seed: int) -> Iterator[tuple[str, str]]:
    """Yields sentences in both languages, as often with any value as with the true one, without end.

    Args:
        seed: Equal seeds give equal sentences.
    """
    rng = random.Random(f"ferry/{seed}")
    taught = [(fact, wording) for fact, wording in _places()[1000:]]
    while True:
        fact, wording = rng.choice(taught)
        yield sentence(fact.person, fact.relation, wording, rng.choice(fact.relation.values))


@cache
def _places() -> list[tuple[Fact, int]]:
    """Every fact in every wording, mixed."""
    places = [(fact, wording) for fact in facts() for wording in range(len(fact.relation.statements))]
    random.Random(_SEED + 1).shuffle(places)
    return places


def _translation(fact: Fact, wording: int) -> Translation:
    source, target = sentence(fact.person, fact.relation, wording, fact.value)
    ambiguous = lexicon().ambiguous(fact.relation, fact.value)
    return Translation(source, target, fact.relation.key, ambiguous, fact.known_to)
