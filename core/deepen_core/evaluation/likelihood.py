"""Questions with given choices, by likelihood: every member reads each text once, and all settings fuse the same steps.

The choice is the one with the most likely text a byte, so that long choices have no disadvantage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deepen_core.engine.reading import TextReading
from deepen_core.engine.scoring import TextReader
from deepen_core.evaluation.items import Item
from deepen_core.evaluation.settings import Setting, Settings


@dataclass(frozen=True)
class ChoiceScores:
    """What is known of one item.

    Attributes:
        bytes: Length of each choice in UTF-8 bytes.
        alone: For each member by its name, the log-probability (nats) of each choice.
        together: The same for each setting by its label.
    """

    bytes: list[int]
    alone: dict[str, list[float]]
    together: dict[str, list[float]]


_TOGETHER = 16  # items that are prepared at once; several may share a forward


def score_items(reader: TextReader, items: Sequence[Item], settings: Settings, *, chat: bool) -> Iterator[ChoiceScores]:
    """Yields the scores of each item, in order.

    Args:
        reader: Reads texts.
        items: The items.
        settings: What is compared.
        chat: Ask in conversations rather than in plain text.

    Raises:
        ChatTemplateError: With `chat`, if a member cannot read a conversation.
        ContextWindowError: If an item is longer than a member's window.
        MemberError: If a member fails.
    """
    names = [reader.members[number].name for number in reader.counted]
    for start in range(0, len(items), _TOGETHER):
        part = items[start : start + _TOGETHER]
        asked = [pair for item in part for pair in item.asked(chat=chat)]
        lengths: list[int] = []
        alone: dict[str, list[float]] = {name: [] for name in names}
        together: dict[str, list[float]] = {}
        for reading in reader.readings(asked):
            for label, found in _fused(reading, settings).items():
                together.setdefault(label, []).extend(found)
            for scores in reading.member_scores():
                for score in scores:
                    alone[score.name].append(score.total)
            lengths += [text.bytes for text in reading.texts]
        place = 0
        for item in part:
            own = slice(place, place + len(item.choices))
            yield ChoiceScores(
                lengths[own],
                {name: found[own] for name, found in alone.items()},
                {label: found[own] for label, found in together.items()},
            )
            place = own.stop


def _fused(reading: TextReading, settings: Settings) -> dict[str, list[float]]:
    """Returns the log-probability of each text in each setting, by its label."""
    known: dict[Setting, dict[int, list[float]]] = {}
    found: dict[str, list[float]] = {}
    for steps in reading:
        for name, mixers in settings.mixers.items():
            comparison = settings.comparison(name, steps)
            for setting, mixer in mixers.items():
                totals = found.setdefault(setting.label, [0.0] * len(reading.texts))
                nats = mixer.logprobs_of(steps, known.setdefault(setting, {}), comparison)
                for text, value in zip(steps.texts, nats, strict=True):
                    totals[text] += value
    return found


def chosen(nats: Sequence[float], lengths: Sequence[int]) -> int:
    """Returns the number of the most likely choice a byte, the first of equal ones."""
    a_byte = [value / max(1, length) for value, length in zip(nats, lengths, strict=True)]
    return max(range(len(a_byte)), key=a_byte.__getitem__)


def voted(alone: Mapping[str, Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Returns the weighted sum of the members' own log-probabilities of each choice.

    Args:
        alone: As in `ChoiceScores`.
        weights: One per member.
    """
    every = zip(*alone.values(), strict=True)
    return [sum(w * value for w, value in zip(weights, values, strict=True)) for values in every]
