"""The longest prompt that fits all members, for callers that count tokens with main's tokenizer only.

Frameworks fill prompts with text up to a window. They count with one tokenizer and ignore what chat templates add.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepen_core.errors import ChatTemplateError
from deepen_core.members.base import Member, MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer

KINDS_OF_TEXT = (
    """\
The old library opens at nine. Mira asked, "How many books are there?" and the clerk said: about 48,000. When it rains,
people stay longer; some read, others wait for the weather to change and look out of the window.
""",
    """\
Die alte Bibliothek öffnet um neun. Les élèves français lisent près de la fenêtre, où il fait plus chaud. Mañana por la
mañana vendrán más niños a la lección.
""",
    """\
def mean(values):
    total = 0
    for index, value in enumerate(values):
        if value is not None:
            total += value
    return total / len(values)
""",
    """\
## Results
----------------
| year | sales |
|---|---|
| 2023 | 48,210.5 |
{"name": "Mira", "ids": [1, 22, 333]}
https://example.com/a?b=1
""",
)
"""Prose, other languages, code and tables: token counts differ most between tokenizers in some of these."""

_TURNS = (
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Where does Mira live?"},
    {"role": "assistant", "content": "In Lisbon."},
    {"role": "user", "content": "And Felix?"},
)


def planning_window(members: Sequence[Member], main: int, *, conversations: bool) -> int:
    """Returns how many of main's tokens a prompt's text and its answer may have together to fit into every member.

    This is the smallest of the members' windows, each reduced by what the member adds to a text and converted to main's
    tokens with the least favourable ratio of the member's tokens to main's. Text of another kind than `KINDS_OF_TEXT`,
    such as a script that a member encodes byte by byte, may still be too long.

    Args:
        members: The members of the ensemble.
        main: Index of the main member.
        conversations: Whether prompts are rendered by chat templates; if not, only BOS is added.
    """
    spoken = members[main].tokenizer
    rooms = [
        (m.context_window - added_tokens(m.tokenizer, conversations=conversations)) / fertility(m.tokenizer, spoken)
        for m in members
    ]
    return max(1, int(min(rooms)))


def fertility(tokenizer: MemberTokenizer, spoken: MemberTokenizer) -> float:
    """Returns the most tokens per token of another tokenizer over `KINDS_OF_TEXT`; at least 1."""
    return max(1.0, *(len(tokenizer.encode(text)) / max(1, len(spoken.encode(text))) for text in KINDS_OF_TEXT))


def added_tokens(tokenizer: MemberTokenizer, *, conversations: bool) -> int:
    """Returns how many tokens a member adds around the text of a prompt.

    Args:
        tokenizer: The member's tokenizer.
        conversations: Whether its chat template adds them. They are counted on conversations of up to four messages,
            without those that the template refuses.
    """
    reader = tokenizer.reader
    text = "Where does Mira live?"
    if not conversations:
        return MemberSequence(reader.read_text(text), tokenizer, is_main=True).prompt_tokens - len(
            tokenizer.encode(text)
        )
    found = [0]
    for turns in (_TURNS, _TURNS[1:], _TURNS[:2], _TURNS[1:2]):
        try:
            read = reader.read_messages(turns)
        except ChatTemplateError:  # the template cannot render this conversation, so it does not count
            continue
        said = sum(len(tokenizer.encode(turn["content"])) for turn in turns)
        found.append(MemberSequence(read, tokenizer, is_main=True).prompt_tokens - said)
    return max(found)
