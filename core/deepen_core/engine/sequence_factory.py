"""Creates a request's sequence: the prompt as each member reads it, the room that it leaves, and the constraint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

from deepen_core.chat.messages import Message
from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.chat.thoughts import Thoughts
from deepen_core.chat.tool_format import described_characters
from deepen_core.config import SamplingParams
from deepen_core.engine.prompt_likelihood import prompt_text
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.errors import ContextWindowError, SamplingError
from deepen_core.fusion.anchors.segmentation import WORD, Segmentation
from deepen_core.members.base import Member, prompt_window
from deepen_core.members.opening import opening_of
from deepen_core.members.sequence import MemberSequence

if TYPE_CHECKING:
    from deepen_core.constraints.matcher import Constraints

_log = logging.getLogger("deepen_core")


class SequenceFactory:
    """Creates sequences from prompts.

    Args:
        members: The models.
        main: The number of the member whose vocabulary is used.
        takes_part: For each member, whether it is run.
    """

    def __init__(self, members: Sequence[Member], main: int, takes_part: Sequence[bool]) -> None:
        self._members = list(members)
        self._main = main
        self._takes_part = list(takes_part)
        self._vocabulary = members[main].tokenizer.vocabulary
        # Embeddings are often padded: nothing stops a model from choosing an id that its tokenizer does not have.
        self._without_token = self._vocabulary.without_token(members[main].vocabulary_size)
        # Sequences outlive the models, which they must not keep.
        self._word_may_follow = partial(
            _word_may_follow, Segmentation(self._vocabulary, members[main].tokenizer.backend)
        )
        self._warned = False

    def create(self, prompt: str | Sequence[Message], params: SamplingParams) -> EnsembleSequence:
        """Creates a sequence from a prompt; nothing is run yet.

        Raises:
            PromptError: If the prompt is empty and a member cannot start from nothing.
            ChatTemplateError: If a conversation is given and a member cannot read it.
            ContextWindowError: If the prompt leaves no room in a member's context window.
            SamplingError: If no answer can follow the constraint, or a bias is of a token that main does not have.
        """
        self._check_bias(params)
        try:
            return self._create(prompt, params)
        except ContextWindowError as error:
            described = 0 if isinstance(prompt, str) else described_characters(prompt)
            if not described:
                raise
            raise ContextWindowError(f"{error} {described:,} of its characters describe tools: give fewer.") from error

    def _create(self, prompt: str | Sequence[Message], params: SamplingParams) -> EnsembleSequence:
        numbers = range(len(self._members))
        prompts = [self.read(i, prompt, params) if self._takes_part[i] else None for i in numbers]
        spoken = prompts[self._main]
        assert spoken is not None
        member_sequences = [None if p is None else self._part(i, p, spoken) for i, p in enumerate(prompts)]
        room = self._room(member_sequences)
        most = self._members[self._main].tokenizer.reader.most_tokens(params, to_text=isinstance(prompt, str))
        clamped = params.model_copy(update={"max_new_tokens": min(most, room)})
        for part in member_sequences:
            if part is not None:
                part.cut &= spoken.cut  # no member continues a word that main does not
                part.shares = not params.deterministic
        names = [m.name for m in self._members]
        starts_text = not spoken.text
        constraint = self.constraints.start(params, starts_text=starts_text) if params.constraint else None
        sequence = EnsembleSequence(
            member_sequences,
            names,
            self._main,
            self._vocabulary,
            clamped,
            constraint,
            prompt_text=prompt_text(prompt),
            never=self._without_token,
            starts_text=starts_text,
            thoughts=self._thoughts,
            word_may_follow=self._word_may_follow,
        )
        if isinstance(prompt, str) and not params.control_tokens:
            sequence.warnings += self._rendered_already(prompt)
        if params.max_new_tokens is not None and room < params.max_new_tokens:
            sequence.warnings.append(
                f"max_new_tokens was lowered from {params.max_new_tokens} to {room}, the room in the context window."
            )
        return sequence

    def _part(self, member: int, prompt: MemberPrompt, spoken: MemberPrompt) -> MemberSequence:
        """Returns a member's sequence, where main starts from `spoken`."""
        tokenizer, main = self._members[member].tokenizer, self._members[self._main].tokenizer
        if member == self._main:
            return MemberSequence(prompt, tokenizer, is_main=True)
        opening = opening_of(prompt, tokenizer, spoken, main)
        return MemberSequence(prompt, tokenizer, is_main=False, opening=opening)

    def _check_bias(self, params: SamplingParams) -> None:
        main = self._members[self._main]
        if beyond := [token for token in params.logit_bias or () if token >= main.vocabulary_size]:
            raise SamplingError(
                f"logit_bias names token {beyond[0]}, but {main.name!r} has {main.vocabulary_size} tokens, from 0 to "
                f"{main.vocabulary_size - 1}: look up the ids with Ensemble.tokenize."
            )

    @cached_property
    def constraints(self) -> Constraints:
        """Constraints on answers in main's vocabulary."""
        from deepen_core.constraints.matcher import Constraints  # noqa: PLC0415  needs an extra

        return Constraints(self._vocabulary, self._thoughts.control)

    @cached_property
    def _thoughts(self) -> Thoughts:
        """The marks of thoughts that main may write."""
        return self._members[self._main].tokenizer.reader.thoughts()

    def read(self, member: int, prompt: str | Sequence[Message], params: SamplingParams) -> MemberPrompt:
        """Returns where a member starts.

        Args:
            member: Its number.
            prompt: The prompt.
            params: The request's options.

        Raises:
            PromptError: If the prompt is empty and the member cannot start from nothing.
            ChatTemplateError: If a conversation is given and the member cannot read it.
            ContextWindowError: If the prompt is so long that it cannot fit.
        """
        reader, window = self._members[member].tokenizer.reader, prompt_window(self._members[member])
        if isinstance(prompt, str):
            return reader.read_text(prompt, control_tokens=params.control_tokens, window=window)
        return reader.read_messages(prompt, reader.variables(params, strict=member == self._main), window)

    def _rendered_already(self, prompt: str) -> list[str]:
        """Returns a warning if a text looks as if main's chat template had rendered it; the first one is logged too."""
        main = self._members[self._main]
        token = main.tokenizer.reader.turn_token(prompt)
        if token is None:
            return []
        warning = (
            f"The prompt holds {token!r}, which the chat template of {main.name!r} writes around turns; it was read as "
            "plain text. Give messages instead, or control_tokens=True if the text was rendered by a template and "
            "holds nothing from a user."
        )
        if not self._warned:
            self._warned = True
            _log.warning(warning)
        return [warning]

    def _room(self, member_sequences: Sequence[MemberSequence | None]) -> int:
        """Returns how many tokens fit after the prompt in main's window; every member must have room for one."""
        for member, part in zip(self._members, member_sequences, strict=True):
            if part is not None:
                _check_room(member, part)
        main = member_sequences[self._main]
        assert main is not None
        return self._members[self._main].context_window - main.start


def _check_room(member: Member, part: MemberSequence) -> None:
    """Rejects a prompt that a member cannot read, or after which it has no room for an answer."""
    window, tokens = prompt_window(member), part.prompt_tokens
    if part.source is not None and tokens > window:
        raise ContextWindowError(
            f"The prompt has {tokens} tokens for the encoder of member {member.name!r}, which reads at most {window}: "
            f"shorten it by at least {tokens - window} tokens. If the model can read more than its configuration says, "
            "as T5 can, set MemberConfig(context_window=...)."
        )
    if part.source is None and tokens >= window:
        raise ContextWindowError(
            f"The prompt has {tokens} tokens for member {member.name!r}, whose context window is {window}: shorten it "
            f"by at least {tokens - window + 1} tokens, or use members with larger windows."
        )
    if part.start >= member.context_window:
        raise ContextWindowError(
            f"The decoder of member {member.name!r} has a context window of {member.context_window}, of which the "
            f"{part.start} tokens that start every answer leave nothing: set a larger context_window."
        )


def _word_may_follow(cuts: Segmentation, token_ids: Sequence[int]) -> bool:
    return cuts.can_continue(token_ids, WORD)
