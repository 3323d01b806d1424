"""Measures tasks in settings, and keeps what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deepen_core.engine.decoder import Decoder
from deepen_core.engine.scoring import TextReader
from deepen_core.errors import ContextWindowError
from deepen_core.evaluation.generation import Answer, Samples, answer_items, sample_items
from deepen_core.evaluation.items import AnsweredItem, OpenItem, Task, prompt_of
from deepen_core.evaluation.judging import mark
from deepen_core.evaluation.ledger import Ledger, digest, open_folder
from deepen_core.evaluation.likelihood import ChoiceScores, chosen, score_items, voted
from deepen_core.evaluation.passes import Passes
from deepen_core.evaluation.settings import Setting, Settings, gate_for, policy_for
from deepen_core.evaluation.strategies import Strategies
from deepen_core.fusion.prompts import PromptLikelihood

VOTE = "vote"
"""The label of the choice that is likeliest by the sum of the members' own log-probabilities."""

Rights = dict[str, list[float]]
"""For each way to answer, by its label: 1 or 0 for each item."""


class Evaluation:
    """Measures settings on tasks.

    Args:
        folder: Keeps what is measured; an evaluation in the same folder goes on from there. None keeps nothing.
        facts: What must be the same for all that is in the folder.
        chat: Ask in conversations rather than in plain text.
        shots: All of their items are shown with their answers before each open question of their kind.
        together: Most items that are answered at once.
        strategies: Builds the strategies; those of `PRESETS` if None.
        progress: Show bars.

    Attributes:
        chat: As given.

    Raises:
        EvaluationError: If the folder holds another evaluation, or cannot be written.
    """

    def __init__(
        self,
        folder: Path | None,
        facts: Mapping[str, Any],
        *,
        chat: bool,
        shots: Sequence[Task] = (),
        together: int = 16,
        strategies: Strategies | None = None,
        progress: bool,
    ) -> None:
        self._strategies = strategies
        self._shots = [item for task in shots for item in task.items if isinstance(item, OpenItem)]
        shown = [digest(shot) for shot in self._shots]
        if folder is not None:
            open_folder(folder, {**facts, "chat": chat, "shots": shown})
        self._scores = Ledger(None if folder is None else folder / "scores.jsonl")
        self._answers = Ledger(None if folder is None else folder / "answers.jsonl")
        self._prompts = Ledger(None if folder is None else folder / "prompts.jsonl")
        self.chat = chat
        self._together = together
        self._passes = Passes(shown=progress)

    def scores(
        self, reader: TextReader, task: Task, settings: Sequence[Setting], *, greedy: bool = False
    ) -> list[ChoiceScores]:
        """Scores the items of a task by likelihood, in all settings at once.

        Args:
            reader: Reads texts with the main member.
            task: The task.
            settings: The settings.
            greedy: Find whether greedy decoding would write the texts of items with one.

        Raises:
            ContextWindowError: If an item is longer than a member's window.
            MemberError: If a member fails.
        """
        main = reader.members[reader.main].name
        keys = [(task.name, main, digest(item)) for item in task.scored]
        items = dict(zip(keys, task.scored, strict=True))
        labels = {setting.label for setting in settings}
        lacking: dict[tuple[str, str, str], AbstractSet[str]] = {}
        for key, item in items.items():
            if (found := self._scores.get(key)) is None:
                lacking[key] = labels
                continue
            known = found["together"].keys()
            if greedy and len(item.choices) == 1:
                known &= found.get("greedy", {}).keys()
            if labels - known:
                lacking[key] = labels - known
        if lacking:
            asked = [setting for setting in settings if any(setting.label in some for some in lacking.values())]
            built = Settings(reader.members, reader.main, asked, self._strategies)
            wanted = [items[key] for key in lacking]
            written = greedy and any(len(item.choices) == 1 for item in wanted)  # all of the vocabulary is fused for it
            scored = score_items(reader, wanted, built, chat=self.chat, greedy=written)
            with _named(task):
                for key in self._passes.over(list(lacking), f"{task.name}, main {main}"):
                    self._scores.add(key, asdict(next(scored)))
        return [ChoiceScores(**found) for key in keys if (found := self._scores.get(key)) is not None]

    def answers(self, reader: TextReader, task: Task, setting: Setting, settings: Settings, by: str) -> list[Answer]:
        """Answers the items of a task in one setting.

        Args:
            reader: Has the members and runs them.
            task: The task.
            setting: The setting.
            settings: Has the setting's strategy.
            by: What answers, in a few words that nothing else has.

        Raises:
            ContextWindowError: If a question is longer than a member's window.
            DecodingError: If fusion fails.
            MemberError: If a member fails.
        """
        keys = [(task.name, by, digest(item)) for item in task.answered]
        items = dict(zip(keys, task.answered, strict=True))
        missing = [key for key in items if self._answers.get(key) is None]
        if missing:
            wanted = [items[key] for key in missing]
            decoder = _decoder(reader, setting, settings)
            answered = answer_items(decoder, reader.call, wanted, self._shots, chat=self.chat, together=self._together)
            with _named(task):
                for key in self._passes.over(missing, f"{task.name}, {by}"):
                    self._answers.add(key, asdict(next(answered)))
        held = {key: found for key in keys if (found := self._answers.get(key)) is not None}
        return [self._marked(items[key], Answer(**found)) for key, found in held.items()]

    def _marked(self, item: AnsweredItem, answer: Answer) -> Answer:
        """Judges an answer to an open question anew: what is held may have been judged by an earlier rule."""
        return replace(answer, right=mark(item, answer.text, chat=self.chat)) if isinstance(item, OpenItem) else answer

    def samples(
        self,
        reader: TextReader,
        task: Task,
        setting: Setting,
        settings: Settings,
        by: str,
        *,
        seeds: Sequence[int],
        temperature: float,
    ) -> list[Samples]:
        """Samples answers to the open questions of a task in one setting; those that are there already may be more.

        Args:
            reader: As for `answers`, as the next arguments.
            task: The task.
            setting: The setting.
            settings: Has the setting's strategy.
            by: What answers.
            seeds: One for each sample of an item.
            temperature: At which answers are sampled.

        Raises:
            DeepenError: As from `answers`.
        """
        what = f"{by}, sampled at {temperature:g}"
        keys = [(task.name, what, digest(item)) for item in task.open]
        wanted = {}
        for key, item in zip(keys, task.open, strict=True):
            held = (self._answers.get(key) or {}).get("texts", {})
            if missing := [seed for seed in seeds if str(seed) not in held]:
                wanted[key] = (item, missing)
        if wanted:
            decoder, asked = _decoder(reader, setting, settings), list(wanted.values())
            options: dict[str, Any] = {"temperature": temperature, "chat": self.chat, "together": self._together}
            sampled = sample_items(decoder, reader.call, asked, self._shots, **options)
            with _named(task):
                for key in self._passes.over(list(wanted), f"{task.name}, {what}"):
                    self._answers.add(key, asdict(next(sampled)))
        return [Samples(**found) for key in keys if (found := self._answers.get(key)) is not None]

    def prompt_likelihoods(self, reader: TextReader, task: Task) -> list[PromptLikelihood]:
        """Returns how likely the members find the prompt of each item of a task.

        Args:
            reader: Has the members and runs them.
            task: The task.

        Raises:
            MemberError: If a member fails.
        """
        keys = [(task.name, "likelihood of the prompt", digest(item)) for item in task.items]
        items = dict(zip(keys, task.items, strict=True))
        missing = [key for key in items if self._prompts.get(key) is None]
        for key in self._passes.over(missing, f"{task.name}, prompts"):
            prompt = prompt_of(items[key], self._shots, chat=self.chat)
            self._prompts.add(key, asdict(reader.prompt_likelihood(prompt)))
        known = [found for key in keys if (found := self._prompts.get(key)) is not None]
        return [PromptLikelihood(tuple(found["nats"]), found["bytes"]) for found in known]


@contextmanager
def _named(task: Task) -> Iterator[None]:
    """Names the task in errors of items that are too long."""
    try:
        yield
    except ContextWindowError as error:
        raise ContextWindowError(f"An item of {task.name} is too long. {error} Or leave it out of the task.") from error


def _decoder(reader: TextReader, setting: Setting, settings: Settings) -> Decoder:
    policy, name = policy_for(setting, len(reader.members)), setting.fusion
    return Decoder(reader.members, reader.main, policy, settings.fusions[name], name, gate=gate_for(setting))


def rights(task: Task, scores: Sequence[ChoiceScores], settings: Mapping[str, Setting]) -> Rights:
    """Returns whether each item is answered right in each setting.

    Args:
        task: The task, with choices.
        scores: Of its items.
        settings: The settings by their labels.
    """
    found: Rights = {label: [] for label in settings}
    for item, held in zip(task.scored, scores, strict=True):
        for label, setting in settings.items():
            found[label].append(float(chosen(held.together[setting.label], held.bytes) == item.answer))
    return found


def rights_of_members(task: Task, scores: Sequence[ChoiceScores]) -> Rights:
    """Returns whether each item is answered right by each member alone, and by their vote.

    Args:
        task: The task, with choices.
        scores: Of its items.
    """
    found: Rights = {}
    for item, held in zip(task.scored, scores, strict=True):
        nats = {alone_label(name): values for name, values in held.alone.items()}
        nats[VOTE] = voted(held.alone)
        for label, values in nats.items():
            found.setdefault(label, []).append(float(chosen(values, held.bytes) == item.answer))
    return found


def alone_label(name: str) -> str:
    """Returns the label of a member that answers alone."""
    return f"{name} alone"
