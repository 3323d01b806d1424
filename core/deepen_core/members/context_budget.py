"""How long a prompt may be, for callers who count by main's tokenizer and know nothing of the other members.

Frameworks fill prompts with text up to a window. They count by one tokenizer, and do not count what chat templates add.
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
"""Prose, other languages, code and tables: tokenizers differ most in some of these."""

_TURNS = (
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Where does Mira live?"},
    {"role": "assistant", "content": "In Lisbon."},
    {"role": "user", "content": "And Felix?"},
)


def planning_window(members: Sequence[Member], main: int, *, conversations: bool) -> int:
    """Main's tokens that the text of a prompt and its answer may have together, so that they fit into every member.

    This is the smallest of the members' windows, each less what the member adds to a text, and in main's tokens:
    divided by how many of the member's tokens stand for one of main's, where they are most. Text of another kind than
    `KINDS_OF_TEXT`, such as a script that a member writes byte by byte, may still be too long.

    Args:
        members: Those that take part.
        main: Index of the main one.
        conversations: Whether prompts are rendered by chat templates; if not, only BOS is added.
    """
    spoken = members[main].tokenizer
    rooms = [
        (m.context_window - added_tokens(m.tokenizer, conversations=conversations)) / fertility(m.tokenizer, spoken)
        for m in members
    ]
    return max(1, int(min(rooms)))


def fertility(tokenizer: MemberTokenizer, spoken: MemberTokenizer) -> float:
    """How many tokens stand for one of another tokenizer's, in the kind of text where they are most; at least 1."""
    return max(1.0, *(len(tokenizer.encode(text)) / max(1, len(spoken.encode(text))) for text in KINDS_OF_TEXT))


def added_tokens(tokenizer: MemberTokenizer, *, conversations: bool) -> int:
    """How many tokens a member puts around the text of a prompt.

    Args:
        tokenizer: The member's.
        conversations: Whether its chat template does so, measured on conversations of up to four messages; those that
            the template refuses are left out.
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
        except ChatTemplateError:  # what it refuses, it adds nothing to
            continue
        said = sum(len(tokenizer.encode(turn["content"])) for turn in turns)
        found.append(MemberSequence(read, tokenizer, is_main=True).prompt_tokens - said)
    return max(found)
