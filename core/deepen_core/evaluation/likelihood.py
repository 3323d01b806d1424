"""Questions with given choices, by likelihood: every member reads each text once, and all settings fuse the same steps.

The choice is the one with the most likely text a byte, so that long choices have no disadvantage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from deepen_core.engine.reading import TextReading
from deepen_core.engine.scoring import TextReader
from deepen_core.evaluation.items import ScoredItem
from deepen_core.evaluation.settings import Setting, Settings


@dataclass(frozen=True)
class ChoiceScores:
    """What is known of one item.

    Attributes:
        bytes: Length of each choice in UTF-8 bytes.
        alone: For each member by its name, the log-probability (nats) of each choice.
        together: The same for each setting by its label.
        asked: For each gate by its threshold, in how many of its steps the other members are asked, and of how many.
        greedy: Whether greedy decoding would write the text, by the labels of settings and, for main alone, its name;
            only where it was asked for, of items with one text.
    """

    bytes: list[int]
    alone: dict[str, list[float]]
    together: dict[str, list[float]]
    asked: dict[str, list[int]] = field(default_factory=dict)
    greedy: dict[str, bool] = field(default_factory=dict)


_TOGETHER = 16  # items that are prepared at once; several may share a forward


def score_items(
    reader: TextReader, items: Sequence[ScoredItem], settings: Settings, *, chat: bool, greedy: bool = False
) -> Iterator[ChoiceScores]:
    """Yields the scores of each item, in order.

    Args:
        reader: Reads texts.
        items: The items.
        settings: What is compared.
        chat: Ask in conversations rather than in plain text.
        greedy: Find whether greedy decoding would write the texts, for which all of main's vocabulary is fused.

    Raises:
        ChatTemplateError: With `chat`, if a member cannot read a conversation.
        ContextWindowError: If an item is longer than a member's window.
        MemberError: If a member fails.
    """
    for start in range(0, len(items), _TOGETHER):
        part = items[start : start + _TOGETHER]
        asked = [pair for item in part for pair in item.asked(chat=chat)]
        texts = [
            text
            for reading in reader.readings(asked, reads_prompts=settings.read_prompts)
            for text in _scored(reading, settings, greedy=greedy)
        ]
        place = 0
        for item in part:
            yield _joined(texts[place : place + len(item.choices)])
            place += len(item.choices)


@dataclass
class _Text:
    """What is known of one text: its length in bytes, and the rest as in `ChoiceScores`."""

    bytes: int
    alone: dict[str, float]
    together: dict[str, float] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    greedy: dict[str, bool] = field(default_factory=dict)
    steps: int = 0


def _scored(reading: TextReading, settings: Settings, *, greedy: bool) -> list[_Text]:
    """Reads some texts, and fuses every step in all settings."""
    texts = [_Text(text.bytes, {}) for text in reading.texts]
    known: dict[Setting, dict[int, list[float]]] = {}
    for steps in reading:
        here = [texts[place] for place in steps.texts]  # the text of each step
        for name, mixers in settings.mixers.items():
            comparison = settings.comparison(name, steps)
            for setting, mixer in mixers.items():
                given = steps, known.setdefault(setting, {}), comparison
                if greedy:
                    nats, best = mixer.choices_in(*given)
                    _follow(here, setting.label, best)
                else:
                    nats = mixer.logprobs_of(*given)
                _add(here, setting.label, nats)
        if greedy:
            _follow(here, settings.main_name, settings.main_chooses(steps))
        _count(here, settings.opened(steps))
    for text, scores in zip(texts, reading.member_scores(), strict=True):
        text.alone = {score.name: score.total for score in scores}
    return texts


def _add(here: Sequence[_Text], label: str, nats: Sequence[float]) -> None:
    """Adds the log-probability of each step's token in some setting."""
    for text, value in zip(here, nats, strict=True):
        text.together[label] = text.together.get(label, 0.0) + value


def _follow(here: Sequence[_Text], label: str, best: Sequence[bool]) -> None:
    """Adds whether each step's token is the most probable one in some setting."""
    for text, is_best in zip(here, best, strict=True):
        text.greedy[label] = text.greedy.get(label, True) and is_best


def _count(here: Sequence[_Text], opened: Mapping[str, Sequence[bool]]) -> None:
    """Counts the steps, and those in which each gate asks the other members."""
    for text in here:
        text.steps += 1
    for label, is_open in opened.items():
        for text, one in zip(here, is_open, strict=True):
            text.asked[label] = text.asked.get(label, 0) + one


def _joined(texts: Sequence[_Text]) -> ChoiceScores:
    """Joins the choices of an item."""
    steps = sum(text.steps for text in texts)
    return ChoiceScores(
        [text.bytes for text in texts],
        {name: [text.alone[name] for text in texts] for name in texts[0].alone},
        {label: [text.together[label] for text in texts] for label in texts[0].together},
        {label: [sum(text.asked[label] for text in texts), steps] for label in texts[0].asked},
        texts[0].greedy if len(texts) == 1 else {},
    )


def chosen(nats: Sequence[float], lengths: Sequence[int]) -> int:
    """Returns the number of the most likely choice a byte, the first of equal ones."""
    a_byte = [value / max(1, length) for value, length in zip(nats, lengths, strict=True)]
    return max(range(len(a_byte)), key=a_byte.__getitem__)


def voted(alone: Mapping[str, Sequence[float]]) -> list[float]:
    """Returns the sum of the members' own log-probabilities of each choice.

    Args:
        alone: As in `ChoiceScores`.
    """
    return [sum(values) for values in zip(*alone.values(), strict=True)]


def shares_asked(scores: Sequence[ChoiceScores], gates: Sequence[float]) -> dict[str, float]:
    """Returns for each gate, by its threshold, the share of steps in which the other members are asked.

    Args:
        scores: Of items.
        gates: The thresholds; those that not all items were scored with are left out.
    """
    labels = [f"{gate:g}" for gate in gates if scores and all(f"{gate:g}" in held.asked for held in scores)]
    return {
        label: sum(held.asked[label][0] for held in scores) / max(1, sum(held.asked[label][1] for held in scores))
        for label in labels
    }
