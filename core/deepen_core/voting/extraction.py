"""What an answer comes to: its last number, what it says the answer is, a match, or its own short form."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from deepen_core.errors import SamplingError

Extract = str | re.Pattern[str] | Callable[[str], str | None]
"""How to extract: a name in `EXTRACTORS`, a regular expression with a group, or a function; None is "no answer"."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"(?:(?<!\w)-)?\d[\d,]*(?:\.\d+)?")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SAYS_ANSWER = re.compile(r"(?:\banswer(?:\s+is\b\s*:?|\s*:)|####)\s*(.+?)(?:[.!?](?=\s|$)|\n|$)", re.IGNORECASE)


def plain(text: str) -> str:
    """Returns a text in lower case without punctuation, articles and superfluous blanks (as in SQuAD)."""
    return _bare(_ARTICLES.sub(" ", _bare(text)))


def _bare(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def last_number(text: str) -> float | None:
    """Returns the last number in a text; None if there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _number(text: str) -> str | None:
    value = last_number(text)
    if value is None:
        return None
    return str(int(value)) if value.is_integer() else repr(value)


def _short(text: str) -> str | None:
    """Returns a text as `plain` has it; a lone number as a number, so that 3.5 is not 35."""
    if _NUMBER.fullmatch(text.strip(" \n$€£%.")):
        return _number(text)
    return plain(text) or _bare(text) or text.strip().casefold() or None  # "A." is a choice as well as an article


def _said(text: str) -> str | None:
    found = _SAYS_ANSWER.findall(text)
    return _short(found[-1]) if found else None


EXTRACTORS: dict[str, Callable[[str], str | None]] = {"short": _short, "number": _number, "answer": _said}
"""By name: "short", the whole text but for case, punctuation, articles and blanks; "number", the last number;
"answer", what follows the last "the answer is", "answer:" or "####", up to the end of the sentence, in short."""


def extractor(extract: Extract) -> Callable[[str], str | None]:
    """Returns the function that extracts an answer from a text.

    Args:
        extract: A name in `EXTRACTORS`; a regular expression, whose first group is the answer where it last matches; or
            a function, which returns None for a text without an answer.

    Raises:
        SamplingError: If it is none of these.
    """
    if isinstance(extract, str) and extract in EXTRACTORS:
        return EXTRACTORS[extract]
    if isinstance(extract, (str, re.Pattern)):
        return _Matched(_pattern(extract))
    if callable(extract):
        return extract
    raise SamplingError(f"extract is {extract!r}: give {_CHOICES}.")


_CHOICES = f"one of {', '.join(EXTRACTORS)}, a regular expression with a group such as r'Answer: (\\w+)', or a function"


def _pattern(extract: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        pattern = re.compile(extract)
    except re.error as problem:
        raise SamplingError(f"extract is {extract!r}, which is no regular expression ({problem}).") from problem
    if not pattern.groups:
        raise SamplingError(f"extract is {pattern.pattern!r}, which has no group: give {_CHOICES}.")
    return pattern


class _Matched:
    """Extracts by a regular expression. A class, so that it can be saved."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def __call__(self, text: str) -> str | None:
        found = [match[1] for match in self._pattern.finditer(text) if match[1] is not None]
        return found[-1].strip() if found else None
