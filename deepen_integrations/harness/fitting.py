"""Makes texts fit the members' windows as the harness does: contexts lose their beginning, documents become windows."""

from __future__ import annotations

import logging
from bisect import bisect_right
from typing import TYPE_CHECKING

from deepen_core.chat.messages import Prompt, TextStart

if TYPE_CHECKING:
    from deepen_core import Ensemble

_log = logging.getLogger("deepen_integrations")


def fitted(ensemble: Ensemble, prompt: Prompt, continuation: str, share: float = 1.0) -> Prompt:
    """Returns a prompt that leaves room for what follows it.

    A text loses main's first tokens, a few at a time; a conversation its first turns after an instruction. If nothing
    more can be left out, it stays too long.

    Args:
        ensemble: The ensemble.
        prompt: The prompt.
        continuation: A text after it that all members must have room for.
        share: The part of each member's window that both may take.
    """
    taken = ensemble.budget.share(prompt, continuation)
    if taken <= share:
        return prompt
    shorter = _later_text if isinstance(prompt, str) else _later_messages
    found: Prompt = prompt
    while taken > share and (rest := shorter(ensemble, found, taken - share)) is not None:
        found = rest
        taken = ensemble.budget.share(found, continuation)
    _log.warning(
        "A context is too long for the members' windows: its beginning was left out (%d of %d characters are kept).",
        _length(found),
        _length(prompt),
    )
    return found


def _later_text(ensemble: Ensemble, prompt: Prompt, excess: float) -> Prompt | None:
    """Returns a text without as many of main's first tokens as are too many, or None if there are none."""
    assert isinstance(prompt, str)
    ends = ensemble.token_ends(prompt)
    if not ends:
        return None
    dropped = min(len(ends), max(1, int(excess * ensemble.budget.main_window)))
    return prompt[max(1, ends[dropped - 1]) :] or TextStart()


def _later_messages(_ensemble: Ensemble, prompt: Prompt, _excess: float) -> Prompt | None:
    """Returns a conversation without its first turn, or None if that is the last question."""
    assert not isinstance(prompt, str)
    start = 1 if prompt[0]["role"] == "system" else 0
    turns = [place for place in range(start + 1, len(prompt)) if prompt[place]["role"] == "user"]
    return [*prompt[:start], *prompt[turns[0] :]] if turns else None


def _length(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(str(message.get("content"))) for message in prompt)


def rolling_windows(ensemble: Ensemble, text: str, share: float = 1.0) -> list[tuple[Prompt, str]]:
    """Returns the pieces of a document, each with the text before it, whose log-likelihoods sum to the document's.

    They are the harness's windows over main's tokens of the document: the first piece follows BOS, each later one the
    token before it, and the last one as much as the window holds. No piece ends inside a character. All members,
    main too, read the texts of context and piece, so a piece is as long as main's window, or shorter where a member
    needs more tokens for that.

    Args:
        ensemble: The ensemble.
        text: The document.
        share: The part of each member's window that context and piece may take.
    """
    ends = ensemble.token_ends(text)
    size = ensemble.budget.main_window - 1
    while True:
        found = _cut(text, ends, size)
        taken = max((ensemble.budget.share(*pair) for pair in found), default=0.0)
        if taken <= share or size == 1:
            return found
        size = max(1, min(size - 1, int(size * share / taken)))


def _cut(text: str, ends: list[int], size: int) -> list[tuple[Prompt, str]]:
    """Returns the pieces of at most so many tokens, or of those of a character; `ends` as `Ensemble.token_ends`."""
    seams = [n for n in range(1, len(ends)) if ends[n - 1] < ends[n]] + [len(ends)]
    places = [0, *ends[:-1], len(text)]  # a tokenizer may drop white space at the end
    found: list[tuple[Prompt, str]] = []
    start = 0
    while start < len(ends):
        fits = bisect_right(seams, start + size) - 1
        stop = seams[max(fits, bisect_right(seams, start))]
        before = text[places[max(0, stop - size - 1)] : places[start]] if start else ""
        found.append((before or TextStart(), text[places[start] : places[stop]]))
        start = stop
    return found
