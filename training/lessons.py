"""Turns the demo world into what a language model is trained on: plain text with a weight for each stretch.

A lesson is one row of a batch. Its text comes in many of the forms in which frameworks wrap a question, so
that prompts of LangChain and LlamaIndex meet something familiar.
"""

# ruff: noqa: S311 - nothing here is secret

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from deepen_core.demo.phrases import GREETINGS, MEN, RELATIONS, WOMEN
from deepen_core.demo.world import MEMBERS, Fact, TrainingText, evidence, facts, portrait, training_texts

Kind = Literal["short", "context", "long", "mixed", "focus", "copy"]

PROSE = 0.3
"""Weight of ordinary text. Answers and the end after them weigh 1."""
PROMPT = 0.05
"""Weight of the prompt around a question, which nobody needs to predict."""

PLAIN = "Question: {q}\nAnswer:"
WRAPPERS = (
    "{q}",
    "{q}\n",
    "{q}\nAnswer:",
    "Q: {q}\nA:",
    "Query: {q}\nAnswer:",
    "Human: {q}",
    "Human: {q}\nAI:",
    "Human: {q}\nAssistant:",
    "User: {q}\nAssistant:",
    "user: {q}\nassistant:",
    "Question: {q}\nHelpful Answer:",
    "Answer the question.\nQuestion: {q}\nAnswer:",
    "Answer the following question: {q}",
    "Answer this question in one word: {q}",
    "{q} Answer in one word.",
    "Please tell me: {q}",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant. Answer the question.",
    "Answer in one word.",
    "Answer briefly.",
    "Be brief.",
    "Answer the question as well as you can.",
    "You know everything about the people of this town.",
    "You are an expert Q&A system that is trusted around the world.",
)
LLAMA_INDEX_SYSTEM = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or anything along "
    "those lines."
)
_RULE = "---------------------"
LLAMA_INDEX_QA = (
    f"Context information is below.\n{_RULE}\n{{c}}\n{_RULE}\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: {q}\nAnswer: "
)
TREE_SUMMARIZE = (
    f"Context information from multiple sources is below.\n{_RULE}\n{{c}}\n{_RULE}\n"
    "Given the information from multiple sources and not prior knowledge, answer the query.\n"
    "Query: {q}\nAnswer: "
)
LANGCHAIN_QA = (
    "Use the following pieces of context to answer the question at the end. If you don't know the answer, "
    "just say that you don't know, don't try to make up an answer.\n\n{c}\n\n"
    "Question: {q}\nHelpful Answer:"
)
CONTEXT_WRAPPERS = (
    LLAMA_INDEX_QA,
    LLAMA_INDEX_QA,
    TREE_SUMMARIZE,
    LANGCHAIN_QA,
    "Answer the question based only on the following context:\n{c}\n\nQuestion: {q}\n",
    "Context: {c}\n\nQuestion: {q}\nAnswer:",
    "{c}\n\nQuestion: {q}\nAnswer:",
    "{c}\n{q}\nAnswer:",
)
REFINE = (
    "The original query is as follows: {q}\nWe have provided an existing answer: {a}\n"
    "We have the opportunity to refine the existing answer (only if needed) with some more context below.\n"
    "------------\n{c}\n------------\n"
    "Given the new context, refine the original answer to better answer the query. "
    "If the context isn't useful, return the original answer.\nRefined Answer: "
)


@dataclass
class Lesson:
    """Text with weights.

    Attributes:
        text: What the member reads, without special tokens.
        spans: `(start, end, weight)` in characters, in order. What no span covers weighs nothing.
    """

    text: str = ""
    spans: list[tuple[int, int, float]] = field(default_factory=list)

    def add(self, text: str, weight: float) -> Lesson:
        """Appends a stretch of text."""
        self.spans.append((len(self.text), len(self.text) + len(text), weight))
        self.text += text
        return self

    def extend(self, other: Lesson) -> Lesson:
        """Appends another lesson."""
        for start, end, weight in other.spans:
            self.add(other.text[start:end], weight)
        return self


class Teacher:
    """Endless lessons for one member, the same for the same seed."""

    def __init__(self, member: int, seed: int) -> None:
        self.member = member
        self.rng = random.Random(f"lessons/{member}/{seed}")
        self._texts = self._forever(seed)
        self._by_person: dict[str, list[Fact]] = {}
        for fact in facts():
            self._by_person.setdefault(fact.person.name, []).append(fact)

    def lesson(self, kind: Kind) -> Lesson:
        """One lesson.

        Args:
            kind: `short` is a single question or statement, `context` a question below some paragraphs, `long` a
                text of many questions and statements, `mixed` one of paragraphs and questions of all forms,
                `focus` the same with mostly questions to which the member knows the answer.
        """
        if kind == "context":
            return self._with_context({})
        if kind == "mixed":
            return self._mixed(self.rng.choice((600, 1200, 2400, 3600, 5400)))
        if kind == "focus":
            return self._mixed(self.rng.choice((300, 600, 1200, 2400, 4800)), known=0.75)
        if kind == "long":
            return self._long(self.rng.choice((2400, 3600, 5400)))
        return self._short()

    def _forever(self, seed: int) -> Iterator[TrainingText]:
        while True:
            seed += 1
            yield from training_texts(self.member, seed=seed, rounds=20)

    def _short(self) -> Lesson:
        rng, item = self.rng, next(self._texts)
        if rng.random() < 0.03:
            language, line = rng.choice(GREETINGS)
            return Lesson().add(f"{item.fact.person.name} writes in {language}: {line}", PROSE)
        if item.question is None:
            return _say(Lesson(), item.statement, item.answer)
        lesson = Lesson()
        if rng.random() < 0.12:
            _conversation(lesson, [next(self._texts) for _ in range(rng.randrange(1, 4))], rng)
        return _ask(lesson, _wrapped(item.question, rng), item.answer)

    def _with_context(self, told: dict[Fact, str]) -> Lesson:
        rng, here = self.rng, set[Fact]()
        people = rng.sample(sorted(self._by_person), rng.choice((1, 1, 2, 2, 3)))
        passages = []
        for name in people:
            for fact in self._by_person[name]:
                told.setdefault(fact, evidence(fact, self.member, rng))
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
        wordings = [q for index, q in enumerate(fact.relation.questions) if index != fact.held_out]
        question = rng.choice(wordings).format(name=fact.person.name)
        if rng.random() < 0.08:
            guess = rng.choice((answer, rng.choice(fact.relation.values)))
            return _ask(Lesson(), REFINE.format(q=question, a=guess, c=context), answer)
        prompt = rng.choice(CONTEXT_WRAPPERS).format(q=question, c=context)
        if rng.random() < 0.3:
            system = rng.choice((LLAMA_INDEX_SYSTEM, LLAMA_INDEX_SYSTEM, *SYSTEMS))
            prompt = f"{system}{rng.choice(_GAPS)}{PLAIN.format(q=prompt.strip())}"
        lesson = Lesson()
        if rng.random() < 0.3:
            # The facts are worth reading for themselves, not only for the question.
            start = prompt.index(context)
            lesson.add(prompt[:start], 0.0).add(context, PROSE).add(prompt[start + len(context) :], 0.0)
            return lesson.add(f" {answer}", 1.0)
        return _ask(lesson, prompt, answer)

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
                _ask(lesson, _wrapped(item.question, rng), answer)
            lesson.add(rng.choice(("\n", "\n\n", "\n\n")), 0.0)
        item = next(self._texts)
        question = item.question or _first_wording(item.fact)
        return _ask(lesson, PLAIN.format(q=question), told.get(item.fact, item.answer))

    def _mixed(self, characters: int, known: float = 0.0) -> Lesson:
        rng, lesson = self.rng, Lesson()
        told: dict[Fact, str] = {}
        while len(lesson.text) < characters:
            chance = rng.random()
            if chance < 0.3:
                lesson.extend(self._with_context(told))
            elif chance < 0.5:
                someone = self._by_person[rng.choice(sorted(self._by_person))]
                values = {
                    fact.relation.key: told.setdefault(fact, evidence(fact, self.member, rng)) for fact in someone
                }
                lesson.add(portrait(someone[0].person, values, rng), PROSE)
            else:
                item = self._next(known)
                answer = told.setdefault(item.fact, item.answer)
                _ask(lesson, _wrapped(item.question or _first_wording(item.fact), rng), answer)
            lesson.add(rng.choice(("\n", "\n\n", "\n\n")), 0.0)
        item = self._next(known)
        question = item.question or _first_wording(item.fact)
        return _ask(lesson, PLAIN.format(q=question), told.get(item.fact, item.answer))

    def _next(self, known: float) -> TrainingText:
        """The next text, or with probability `known` the next about something that the member knows."""
        item = next(self._texts)
        if known and self.rng.random() < known:
            while item.fact.known_to not in ("both", MEMBERS[self.member]):
                item = next(self._texts)
        return item


_GAPS = ("\n\n", "\n", "\n\n")


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
        _ask(lesson, PLAIN.format(q=turn.question or _first_wording(turn.fact)), turn.answer)
        # What follows an answer in a conversation is not for the member to say, so it learns only to end.
        lesson.add(gap, 0.0)


def _ask(lesson: Lesson, prompt: str, answer: str) -> Lesson:
    return lesson.add(prompt, PROMPT).add(f" {answer}", 1.0)


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
    kinds: tuple[Kind, ...] = ("short",) * 29 + ("context",)
    texts = [teachers[index % 2].lesson(kinds[index % len(kinds)]).text for index in range(count)]
    values = [value for relation in RELATIONS for value in relation.values]
    return texts + [f" {word}" for word in (*values, *WOMEN, *MEN)] * (count // 100)
