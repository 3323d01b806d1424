"""Asks each member of the demo, and the ensemble, the same questions."""

from __future__ import annotations

from dataclasses import dataclass

from rich.progress import Progress

from deepen_core import Ensemble
from deepen_core.demo import MEMBERS, Question, questions
from deepen_integrations.cli.console import console

TOGETHER = "together"
_AT_ONCE = 12


@dataclass(frozen=True)
class Answers:
    """The answers of one member, or of the ensemble, to each question."""

    by: str
    """The member's name, or `together`."""
    texts: list[str]
    right: list[bool]


@dataclass(frozen=True)
class Comparison:
    """The same questions, answered by each member alone and by the ensemble."""

    questions: list[Question]
    answers: list[Answers]
    """One entry per member, the ensemble's last."""


def ask_all(count: int, fusion: str) -> Comparison:
    """Asks every member alone, then the ensemble. Shows progress on the error stream.

    Args:
        count: Number of held-out questions.
        fusion: Name of the ensemble's fusion strategy.
    """
    asked = questions()[:count]
    with Progress(console=console(stderr=True), transient=True) as progress:
        answers = []
        for index, name in enumerate([*MEMBERS, TOGETHER]):
            alone = [float(member == name) for member in MEMBERS]
            weights, main = (None, 0) if name == TOGETHER else (alone, index)
            task = progress.add_task(name, total=len(asked))
            with Ensemble.demo(fusion=fusion, main=main, weights=weights) as ensemble:
                texts: list[str] = []
                for start in range(0, len(asked), _AT_ONCE):
                    prompts = [question.prompt for question in asked[start : start + _AT_ONCE]]
                    generations = ensemble.generate(prompts, max_new_tokens=16, stop=["\n"])
                    texts += [generation.text.strip() for generation in generations]
                    progress.update(task, completed=len(texts))
            right = [text == question.answer for text, question in zip(texts, asked, strict=True)]
            answers.append(Answers(name, texts, right))
    return Comparison(asked, answers)
