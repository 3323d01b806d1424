"""Turns the demo world into what a language model is trained on: plain text with a weight for each stretch.

A lesson is one row of a batch. Its text comes in many of the forms of `prompts`.
"""

# ruff: noqa: S311 - nothing here is secret

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Literal

from agents import GAPS, agent_step, short_call
from objects import object_lesson
from prompts import (
    CONTEXT_WRAPPERS,
    FORM,
    LLAMA_INDEX_SYSTEM,
    PLAIN,
    PROMPT,
    PROSE,
    REFINE,
    SYSTEMS,
    WRAPPERS,
    Lesson,
)

from deepen_core.demo.phrases import GREETINGS, MEN, RELATIONS, WOMEN
from deepen_core.demo.sums import SUMS_MEMBER, training_sums
from deepen_core.demo.world import MEMBERS, Fact, TrainingText, evidence, facts, portrait, training_texts

Kind = Literal[
    "short",
    "context",
    "long",
    "mixed",
    "focus",
    "copy",
    "sums",
    "drill",
    "note",
    "notes",
    "quotes",
    "reading",
    "steps",
    "objects",
]


class Teacher:
    """Endless lessons for one member, the same for the same seed."""

    def __init__(self, member: int, seed: int) -> None:
        self.member = member
        self.rng = random.Random(f"lessons/{member}/{seed}")
        self._texts = self._forever(seed)
        self._all_sums = training_sums(member, seed)
        self._by_person: dict[str, list[Fact]] = {}
        for fact in facts():
            self._by_person.setdefault(fact.person.name, []).append(fact)

    def lesson(self, kind: Kind) -> Lesson:
        """One lesson.

        Args:
            kind: `short` is a question, statement or portrait, `context` a question below some paragraphs, `long` a
                text of many questions and statements, `mixed` one of paragraphs and questions of all forms, `focus` the
                same with mostly questions to which the member knows the answer, `sums` some sums, `drill` many of them,
                `note` a question below an invented sentence, `notes` below a few, `reading` some below invented
                paragraphs, `quotes` a name or value in quotation marks, as JSON has it, `steps` one step of an agent,
                `objects` an object that follows a schema.
        """
        makers: dict[Kind, Callable[[], Lesson]] = {
            "short": self._short,
            "context": lambda: self._with_context({}, invented=self.rng.random() < INVENTED),
            "drill": self._drill,
            "note": self._note,
            "notes": self._notes,
            "objects": self._objects,
            "quotes": self._quotes,
            "reading": self._reading,
            "sums": self._sums,
            "steps": self._steps,
            "mixed": lambda: self._mixed(self.rng.choice((600, 1200, 2400, 3600, 5400))),
            "focus": lambda: self._mixed(self.rng.choice((300, 600, 1200, 2400, 4800)), known=0.75),
            "long": lambda: self._long(self.rng.choice((2400, 3600, 5400))),
        }
        return makers[kind]()

    def _forever(self, seed: int) -> Iterator[TrainingText]:
        while True:
            seed += 1
            yield from training_texts(self.member, seed=seed, rounds=20)

    def _short(self) -> Lesson:
        rng, item = self.rng, next(self._texts)
        if rng.random() < 0.03:
            language, line = rng.choice(GREETINGS)
            return Lesson().add(f"{item.fact.person.name} writes in {language}: {line}", PROSE)
        if item.question is None and rng.random() < 0.2:
            person = item.fact.person
            values = {f.relation.key: self._claim(f, invented=False) for f in self._by_person[person.name]}
            return Lesson().add(portrait(person, values, rng), PROSE)
        if item.question is None:
            return _say(Lesson(), item.statement, item.answer)
        lesson = Lesson()
        if rng.random() < 0.12:
            _conversation(lesson, [next(self._texts) for _ in range(rng.randrange(1, 4))], rng)
        return lesson.ask(_wrapped(item.question, rng), item.answer)

    def _sums(self) -> Lesson:
        if self.member == SUMS_MEMBER and self.rng.random() < 0.5:
            return self._drill()
        lesson = Lesson()
        for place in range(self.rng.choice((1, 1, 2, 3))):
            question, answer = next(self._all_sums)
            gap = self.rng.choice(_GAPS) if place else ""
            lesson.add(gap, 0.0).ask(_wrapped(question, self.rng), answer)
        return lesson

    def _reading(self) -> Lesson:
        return self._read_well() if self.rng.random() < 0.5 else self._with_context({}, invented=True)

    def _note(self) -> Lesson:
        """A sentence that contradicts the world, and a question: so little text that reading is soon learned."""
        rng, fact = self.rng, self.rng.choice(facts())
        value = rng.choice(fact.relation.values)
        said = rng.choice(fact.relation.statements).format(name=fact.person.name, value=value)
        return Lesson().add(f"{said}\n{PLAIN.format(q=self._wording(fact))}", 0.0).add(f" {value}", 1.0)

    def _notes(self) -> Lesson:
        """A few such sentences."""
        rng = self.rng
        known = rng.sample(facts(), rng.choice((1, 1, 1, 2, 3, 4, 6)))
        if rng.random() < 0.4:
            someone = self._by_person[rng.choice(sorted(self._by_person))]
            known = rng.sample(someone, min(len(known), len(someone)))
        told = [(fact, rng.choice(fact.relation.values)) for fact in known]
        said = [rng.choice(f.relation.statements).format(name=f.person.name, value=value) for f, value in told]
        fact, answer = rng.choice(told)
        prompt = rng.choice(CONTEXT_WRAPPERS if rng.random() < 0.3 else _NOTED)
        return Lesson().add(prompt.format(c=" ".join(said), q=self._wording(fact)), 0.0).add(f" {answer}", 1.0)

    def _wording(self, fact: Fact) -> str:
        """A question for a fact, in one of the wordings that are trained."""
        wordings = [q for index, q in enumerate(fact.relation.questions) if index != fact.held_out]
        return self.rng.choice(wordings).format(name=fact.person.name)

    def _read_well(self) -> Lesson:
        """A passage or two that contradict the world, and many questions about them."""
        rng, lesson = self.rng, Lesson()
        asked: list[tuple[Fact, str]] = []
        for name in rng.sample(sorted(self._by_person), rng.choice((1, 1, 2))):
            told = {fact: rng.choice(fact.relation.values) for fact in self._by_person[name]}
            asked += told.items()
            values = {fact.relation.key: value for fact, value in told.items()}
            lesson.add(f"{portrait(self._by_person[name][0].person, values, rng)}\n", 0.0)
        for fact, value in rng.sample(asked, rng.randrange(3, len(asked))):
            lesson.add(rng.choice(_GAPS), 0.0).ask(_wrapped(self._wording(fact), rng), value)
        return lesson

    def _drill(self) -> Lesson:
        """Nothing but sums, so that each of them comes up often enough to be learned by heart."""
        lesson = Lesson()
        for _ in range(self.rng.randrange(8, 24)):
            _, steps = next(self._all_sums)
            task, _, result = steps.rpartition(" ")
            lesson.add(task, PROMPT).add(f" {result}", 1.0).add("\n", 0.0)
        return lesson

    def _steps(self) -> Lesson:
        rng, fact = self.rng, self.rng.choice(facts())
        name = fact.person.name
        invented = rng.random() < INVENTED
        values = {f.relation.key: self._claim(f, invented) for f in self._by_person[name]}
        record = portrait(fact.person, values, rng)
        return agent_step(self.member, name, self._wording(fact), record, values[fact.relation.key], rng)

    def _quotes(self) -> Lesson:
        """A call with the name of who is asked for, or an object with what one sentence or two say."""
        rng, fact = self.rng, self.rng.choice(facts())
        name = fact.person.name
        if rng.random() < 0.5:
            return short_call(self.member, name, self._wording(fact), rng)
        told = {f: rng.choice(f.relation.values) for f in rng.sample(self._by_person[name], rng.randrange(1, 4))}
        said = [rng.choice(f.relation.statements).format(name=name, value=value) for f, value in told.items()]
        fact, value = rng.choice(list(told.items()))
        quote = "" if value.isdigit() else '"'
        prompt = f'{PLAIN.format(q=" ".join(said))} {{"{fact.relation.key}": {quote}'
        return Lesson().add(prompt, 0.0).add(value, 1.0).add(f"{quote}}}", FORM)

    def _objects(self) -> Lesson:
        """A paragraph or a question, and what it says or asks for as an object."""
        rng, fact, gap = self.rng, self.rng.choice(facts()), GAPS[self.member]
        known = self._by_person[fact.person.name]
        if rng.random() < 0.15:
            return object_lesson(gap, self._wording(fact), {fact.relation: evidence(fact, self.member, rng)}, rng)
        invented = rng.random() < INVENTED
        told = {f: self._claim(f, invented) for f in known}
        text = portrait(fact.person, {f.relation.key: value for f, value in told.items()}, rng)
        if rng.random() < 0.5:
            return object_lesson(gap, f"{text}\n\n{self._wording(fact)}", {fact.relation: told[fact]}, rng)
        chosen = rng.sample(known, rng.randrange(1, 5))
        return object_lesson(gap, text, {f.relation: told[f] for f in chosen}, rng)

    def _claim(self, fact: Fact, invented: bool) -> str:
        return self.rng.choice(fact.relation.values) if invented else evidence(fact, self.member, self.rng)

    def _with_context(self, told: dict[Fact, str], *, invented: bool = False) -> Lesson:
        rng, here = self.rng, set[Fact]()
        people = rng.sample(sorted(self._by_person), rng.choice((1, 1, 2, 2, 3)))
        passages = []
        for name in people:
            for fact in self._by_person[name]:
                told.setdefault(fact, self._claim(fact, invented))
                here.add(fact)
            if rng.random() < 0.6:
                values = {fact.relation.key: told[fact] for fact in self._by_person[name]}
                passages.append(portrait(self._by_person[name][0].person, values, rng))
            else:
                some = rng.sample(self._by_person[name], rng.randrange(2, 7))
                said = [rng.choice(f.relation.statements).format(name=name, value=told[f]) for f in some]
                passages.append(" ".join(said))
            if rng.random() < 0.15:
                passages[-1] = f"title: {name}\n\n{passages[-1]}"
        context = rng.choice(("\n\n", "\n\n", "\n")).join(passages)
        asked = [fact for fact in told if fact in here and told[fact] in context]
        fact = rng.choice(asked) if rng.random() < 0.9 else rng.choice(facts())
        answer = told.get(fact) or told.setdefault(fact, evidence(fact, self.member, rng))
        question = self._wording(fact)
        if rng.random() < 0.08:
            guess = rng.choice((answer, rng.choice(fact.relation.values)))
            return Lesson().ask(REFINE.format(q=question, a=guess, c=context), answer)
        prompt = rng.choice(CONTEXT_WRAPPERS).format(q=question, c=context)
        if rng.random() < 0.3:
            system = rng.choice((LLAMA_INDEX_SYSTEM, LLAMA_INDEX_SYSTEM, *SYSTEMS))
            prompt = f"{system}{rng.choice(_GAPS)}{PLAIN.format(q=prompt.strip())}"
        lesson = Lesson()
        if rng.random() < 0.3 and not invented:
            # The facts are worth reading for themselves, not only for the question.
            start = prompt.index(context)
            lesson.add(prompt[:start], 0.0).add(context, PROSE).add(prompt[start + len(context) :], 0.0)
            return lesson.add(f" {answer}", 1.0)
        return lesson.ask(prompt, answer)

    def _long(self, characters: int) -> Lesson:
        rng, lesson = self.rng, Lesson()
        told: dict[Fact, str] = {}
        while len(lesson.text) < characters:
            item = next(self._texts)
            # One text does not contradict itself.
            answer = told.setdefault(item.fact, item.answer)
            if item.question is None:
                _say(lesson, item.statement.replace(item.answer, answer), answer)
            else:
                lesson.ask(_wrapped(item.question, rng), answer)
            lesson.add(rng.choice(("\n", "\n\n", "\n\n")), 0.0)
        item = next(self._texts)
        question = item.question or _first_wording(item.fact)
        return lesson.ask(PLAIN.format(q=question), told.get(item.fact, item.answer))

    def _mixed(self, characters: int, known: float = 0.0) -> Lesson:
        rng, lesson = self.rng, Lesson()
        told: dict[Fact, str] = {}
        invented = rng.random() < INVENTED
        while len(lesson.text) < characters:
            chance = rng.random()
            if chance < 0.3:
                lesson.extend(self._with_context(told, invented=invented))
            elif chance < 0.5:
                someone = self._by_person[rng.choice(sorted(self._by_person))]
                values = {f.relation.key: told.setdefault(f, self._claim(f, invented)) for f in someone}
                # What is invented is there to be read, not to be known.
                lesson.add(portrait(someone[0].person, values, rng), 0.0 if invented else PROSE)
            else:
                item = self._next(known)
                answer = told.setdefault(item.fact, item.answer)
                lesson.ask(_wrapped(item.question or _first_wording(item.fact), rng), answer)
            lesson.add(rng.choice(("\n", "\n\n", "\n\n")), 0.0)
        item = self._next(known)
        question = item.question or _first_wording(item.fact)
        return lesson.ask(PLAIN.format(q=question), told.get(item.fact, item.answer))

    def _next(self, known: float) -> TrainingText:
        """The next text, or with probability `known` the next about something that the member knows."""
        item = next(self._texts)
        if known and self.rng.random() < known:
            while item.fact.known_to not in ("both", MEMBERS[self.member]):
                item = next(self._texts)
        return item


_GAPS = ("\n\n", "\n", "\n\n")
_NOTED = ("{c}\nQuestion: {q}\nAnswer:", "Question: {q}\n{c}\nAnswer:")
"""An agent reads the question before the text."""
INVENTED = 0.8
"""So often a text tells another story than the world. From true ones, answers are learned by heart, and not to read."""


def _first_wording(fact: Fact) -> str:
    index = 1 if fact.held_out == 0 else 0
    return fact.relation.questions[index].format(name=fact.person.name)


def _wrapped(question: str, rng: random.Random) -> str:
    prompt = (PLAIN if rng.random() < 0.5 else rng.choice(WRAPPERS)).format(q=question)
    if rng.random() < 0.15:
        system = rng.choice(SYSTEMS)
        prefix = "System: " if rng.random() < 0.3 else ""
        prompt = f"{prefix}{system}{rng.choice(_GAPS)}{prompt}"
    return prompt + " " if rng.random() < 0.06 else prompt


def _conversation(lesson: Lesson, turns: list[TrainingText], rng: random.Random) -> None:
    gap = rng.choice(_GAPS)
    for turn in turns:
        lesson.ask(PLAIN.format(q=turn.question or _first_wording(turn.fact)), turn.answer)
        # What follows an answer in a conversation is not for the member to say, so it learns only to end.
        lesson.add(gap, 0.0)


def _say(lesson: Lesson, statement: str, answer: str) -> Lesson:
    before, _, after = statement.rpartition(f" {answer}")
    return lesson.add(before, PROSE).add(f" {answer}", 1.0).add(after, PROSE)


def vocabulary_texts(seed: int, count: int = 6000) -> list[str]:
    """Texts from which both tokenizers are learned: lessons of both members and the words of the world.

    Members whose tokens differ much in length predict different things at the same step, so both learn their
    tokens from the same texts, and answers are frequent enough to be whole tokens, most of them in both.

    Args:
        seed: Equal seeds give equal texts.
        count: How many lessons.
    """
    teachers = [Teacher(member, seed) for member in (0, 1)]
    kinds: tuple[Kind, ...] = ("short",) * 25 + ("context", "quotes", "quotes", "steps", "objects")
    texts = [teachers[index % 2].lesson(kinds[index % len(kinds)]).text for index in range(count)]
    values = [value for relation in RELATIONS for value in relation.values]
    words = [*values, *WOMEN, *MEN]
    return texts + [f" {word}" for word in words] * (count // 100) + [f'"{word}"' for word in words] * (count // 150)
