"""How much of a prompt fits all members, for callers that know one window and one count only.

Frameworks fill prompts with text up to a window. Some ask the model how many tokens a prompt has: they get the count of
the member whose window it fills most. Others count with main's tokenizer and ignore what chat templates add: they get a
window with allowances for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from deepen_core.chat.messages import Prompt, check_messages
from deepen_core.config import SamplingParams
from deepen_core.errors import ChatTemplateError, ChatTemplateLimitError
from deepen_core.members.base import prompt_window
from deepen_core.members.sequence import MemberSequence
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


class Budgeted(Protocol):
    """What a budget has to know of a member, whether or not its weights are loaded."""

    @property
    def tokenizer(self) -> MemberTokenizer:
        """Its tokenizer."""
        ...

    @property
    def context_window(self) -> int:
        """In its own tokens."""
        ...


class ContextBudget:
    """How much of a prompt fits all members of an ensemble.

    Args:
        members: The members that take part.
        main: Index of the main member.
    """

    def __init__(self, members: Sequence[Budgeted], main: int) -> None:
        # Not the members themselves, which may be large.
        self._windows = [(m.tokenizer, prompt_window(m)) for m in members]
        self._answer_windows = [m.context_window for m in members]
        self._main, self.main_window = self._windows[main]

    @property
    def has_chat_template(self) -> bool:
        """Whether every member can read a conversation."""
        return all(tokenizer.reader.has_chat_template for tokenizer, _ in self._windows)

    @property
    def context_window(self) -> int:
        """The smallest window of all members, in tokens of the member that has it."""
        return min(window for _, window in self._windows)

    @cached_property
    def planning_window(self) -> int:
        """How many of main's tokens a prompt's text and its answer may have together to fit into every member.

        This is the smallest of the members' windows, each reduced by what the member adds to a text and converted to
        main's tokens with the least favourable ratio of the member's tokens to main's. Text of another kind than
        `KINDS_OF_TEXT`, such as a script that a member encodes byte by byte, may still be too long.
        """
        conversations = self.has_chat_template
        rooms = [
            (window - added_tokens(tokenizer, conversations=conversations)) / fertility(tokenizer, self._main)
            for tokenizer, window in self._windows
        ]
        return max(1, int(min(rooms)))

    def count(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Counts a prompt by the member whose window it fills most, in the scale of main's window.

        A prompt whose count is below `main_window` fits into every member, with room for an answer.

        Args:
            prompt: A text, without BOS, or messages, as each member's chat template renders them.
            params: Options of the request: `reasoning` and `chat_template_kwargs` change what chat templates write.

        Returns:
            The largest of the members' counts, each times main's window over the member's own: 300 tokens of a window
            of 1,024 are as much as 600 of main's window of 2,048.

        Raises:
            ChatTemplateError: If messages are given, and a member has no chat template or it refuses them.
            PromptError: If they are not a conversation.
            SamplingError: If main's chat template cannot do what `reasoning` asks for.
        """
        if not isinstance(prompt, str):
            prompt = check_messages(prompt)
        params = SamplingParams() if params is None else params
        counts = (
            (_prompt_tokens(tokenizer, prompt, params, strict=tokenizer is self._main), window)
            for tokenizer, window in self._windows
        )
        return max(-(-count * self.main_window // window) for count, window in counts)

    def share(self, prompt: Prompt, continuation: str = "") -> float:
        """Returns the largest share of a member's window that a prompt and a text after it take; above 1 is too long.

        Args:
            prompt: A text, or messages.
            continuation: The text after it.

        Raises:
            ChatTemplateError: If messages are given, and a member has no chat template or it refuses them.
            PromptError: If a member cannot start from the prompt.
        """
        shares = []
        for (tokenizer, window), answer_window in zip(self._windows, self._answer_windows, strict=True):
            part = _filled(tokenizer, prompt, continuation)
            shares += [len(part.ids) / answer_window, len(part.source or ()) / window]
        return max(shares)


def _filled(tokenizer: MemberTokenizer, prompt: Prompt, continuation: str) -> MemberSequence:
    reader = tokenizer.reader
    read = reader.read_text(prompt) if isinstance(prompt, str) else reader.read_messages(prompt)
    part = MemberSequence(read, tokenizer, is_main=False)
    part.append_text(continuation)
    return part


def _prompt_tokens(tokenizer: MemberTokenizer, prompt: Prompt, params: SamplingParams, *, strict: bool) -> int:
    reader = tokenizer.reader
    if isinstance(prompt, str):
        return reader.count_text(prompt)
    read = reader.read_messages(prompt, reader.variables(params, strict=strict))
    return MemberSequence(read, tokenizer, is_main=True).prompt_tokens


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
        except ChatTemplateLimitError:
            raise
        except ChatTemplateError:  # the template cannot render this conversation, so it does not count
            continue
        said = sum(len(tokenizer.encode(turn["content"])) for turn in turns)
        found.append(MemberSequence(read, tokenizer, is_main=True).prompt_tokens - said)
    return max(found)
