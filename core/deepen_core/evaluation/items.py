"""Items of tasks: questions with choices or open answers, programming exercises, translations, and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepen_core.chat.messages import Message, Prompt

_BRIEF = "Answer in a few words, without a sentence."
_STEPS = "Think step by step, and end with: Therefore, the answer is NUMBER."


@dataclass(frozen=True)
class ChoiceItem:
    """A question with given choices.

    Attributes:
        question: The question.
        choices: The choices.
        answer: The number of the right one.
    """

    question: str
    choices: tuple[str, ...]
    answer: int

    def asked(self, *, chat: bool) -> list[tuple[Prompt, str]]:
        """Returns the prompt before each text to score, and that text.

        Args:
            chat: Ask in a conversation rather than in plain text.
        """
        if chat:
            return [([{"role": "user", "content": self.question}], choice) for choice in self.choices]
        return [(f"Question: {self.question}\nAnswer:", f" {choice}") for choice in self.choices]


@dataclass(frozen=True)
class TextItem:
    """A text that should be likely after a prompt.

    Attributes:
        prompt: The text before it.
        text: The text.
    """

    prompt: str
    text: str

    choices = ("",)
    answer = 0

    def asked(self, *, chat: bool) -> list[tuple[Prompt, str]]:
        """See `ChoiceItem.asked`."""
        return [([{"role": "user", "content": self.prompt}] if chat else self.prompt, self.text)]


@dataclass(frozen=True)
class RightAnswer:
    """The right answer to an item that is answered by a text: what weights are fitted on.

    Attributes:
        prompt: The text or conversation that asks for it.
        text: The answer.
    """

    prompt: Prompt
    text: str

    choices = ("",)
    answer = 0

    def asked(self, *, chat: bool) -> list[tuple[Prompt, str]]:  # noqa: ARG002  the prompt is one or the other
        """See `ChoiceItem.asked`."""
        return [(self.prompt, self.text)]


@dataclass(frozen=True)
class OpenItem:
    """A question to answer.

    Attributes:
        question: The question.
        answers: All ways to write the right answer; numbers, if there is a solution.
        solution: A solution in steps, for questions whose answer is a number; empty for those answered at once.
    """

    question: str
    answers: tuple[str, ...]
    solution: str = ""

    @property
    def stop(self) -> tuple[str, ...]:
        """Where an answer in plain text ends."""
        return ("\nQuestion:",) if self.solution else ("\n",)

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of an answer."""
        return 256 if self.solution else 32

    def prompt(self, shots: Sequence[OpenItem], *, chat: bool) -> Prompt:
        """Returns the prompt.

        Args:
            shots: Other questions; those of its kind are shown with their answers.
            chat: Ask in a conversation rather than in plain text.
        """
        similar = [shot for shot in shots if bool(shot.solution) == bool(self.solution)]
        if not chat:
            return "".join(f"{one.asked} {one.shown}\n\n" for one in similar) + self.asked
        messages: list[Message] = []
        for one in similar:
            messages += [{"role": "user", "content": one.told}, {"role": "assistant", "content": one.shown}]
        return [*messages, {"role": "user", "content": self.told}]

    @property
    def asked(self) -> str:
        """The question in plain text."""
        return f"Question: {self.question}\nAnswer:"

    @property
    def told(self) -> str:
        """The question in a conversation."""
        return f"{self.question}\n{_STEPS if self.solution else _BRIEF}"

    @property
    def shown(self) -> str:
        """The answer, as an example."""
        return self.solution or self.answers[0]


@dataclass(frozen=True)
class CodeItem:
    """A function to complete.

    Attributes:
        start: The beginning of the program, up to the function's body.
        test: A program that defines `check(candidate)`, which fails if the function is wrong.
        entry_point: The name of the function.
    """

    start: str
    test: str
    entry_point: str

    stop = ("\ndef ", "\nclass ", "\nif ", "\nprint(", "\n#", "\n```", "\nassert ")
    max_new_tokens = 256

    def program(self, text: str) -> str:
        """Returns the program that fails unless a continuation is right."""
        return f"{self.start}{text}\n\n{self.test}\n\ncheck({self.entry_point})\n"


@dataclass(frozen=True)
class TranslationItem:
    """A text to translate. Members read it as it is, or in the form of their own (`MemberConfig.prompt`).

    Attributes:
        source: The text.
        translation: What it is in the other language.
    """

    source: str
    translation: str

    stop = ("\n",)
    max_new_tokens = 128

    def prompt(self, *, chat: bool) -> Prompt:
        """Returns the prompt.

        Args:
            chat: Ask in a conversation rather than in plain text.
        """
        return [{"role": "user", "content": self.source}] if chat else self.source


ScoredItem = ChoiceItem | TextItem | RightAnswer
"""Items that are scored by likelihood."""
AnsweredItem = OpenItem | CodeItem | TranslationItem
"""Items that are answered by a text."""
Item = ScoredItem | AnsweredItem


@dataclass(frozen=True)
class Task:
    """Some items of one kind.

    Attributes:
        name: The name of its file, without ending.
        items: The items.
    """

    name: str
    items: tuple[Item, ...]

    @property
    def scored(self) -> list[ScoredItem]:
        """Its items, if they are scored by likelihood."""
        return [item for item in self.items if isinstance(item, (ChoiceItem, TextItem, RightAnswer))]

    @property
    def answered(self) -> list[AnsweredItem]:
        """Its items, if they are answered by a text."""
        return [item for item in self.items if isinstance(item, AnsweredItem)]

    @property
    def open(self) -> list[OpenItem]:
        """Its items, if all are open questions."""
        found = [item for item in self.items if isinstance(item, OpenItem)]
        return found if len(found) == len(self.items) else []

    @property
    def has_exercises(self) -> bool:
        """Whether some of its items are programs to complete, which no given answer can be read for."""
        return any(isinstance(item, CodeItem) for item in self.items)

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether answers to its items can be judged."""
        return not any(isinstance(item, TextItem) for item in self.items)


def prompt_of(item: Item, shots: Sequence[OpenItem], *, chat: bool) -> Prompt:
    """Returns what is before the answer to an item.

    Args:
        item: The item.
        shots: As for `OpenItem.prompt`.
        chat: Ask in a conversation rather than in plain text; programs are continued as they are.
    """
    if isinstance(item, CodeItem):
        return item.start
    if isinstance(item, TranslationItem):
        return item.prompt(chat=chat)
    if isinstance(item, OpenItem):
        return item.prompt(shots, chat=chat)
    return item.asked(chat=chat)[0][0]


def right_answers(task: Task, shots: Sequence[OpenItem], *, chat: bool) -> Task:
    """Returns a task with the right answers to open questions and translations in place of these.

    Args:
        task: The task.
        shots: As for `OpenItem.prompt`.
        chat: Ask in conversations rather than in plain text.
    """
    return Task(task.name, tuple(_with_answer(item, shots, chat=chat) for item in task.items))


def _with_answer(item: Item, shots: Sequence[OpenItem], *, chat: bool) -> Item:
    if isinstance(item, OpenItem):
        return RightAnswer(item.prompt(shots, chat=chat), item.shown if chat else f" {item.shown}")
    if isinstance(item, TranslationItem):
        return RightAnswer(item.prompt(chat=chat), item.translation)
    return item
