"""The state of one request: each member's part of it, and its output so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import torch

from deepen_core.chat.thoughts import MarkListener, Thoughts
from deepen_core.config import SamplingParams
from deepen_core.engine.failures import constraint_failed, telling_failed, told_as
from deepen_core.errors import DeepenError, TimedOutError
from deepen_core.fusion.prompts import PromptLikelihood
from deepen_core.members.sequence import MemberSequence
from deepen_core.results import Chunk, FinishReason, Generation, MemberWork, Timings, TokenLogprob, Usage
from deepen_core.sampling.detokenizer import Utf8Stream
from deepen_core.sampling.sampler import Sampler, masked
from deepen_core.sampling.stop_strings import StopMatcher
from deepen_core.tokenization.vocabulary import Vocabulary
from deepen_core.tracing import Trace, TraceStep

if TYPE_CHECKING:
    from deepen_core.constraints.matcher import Constraint


class EnsembleSequence:
    """State of one request; `Decoder.step` drives it. One thread at a time may use it.

    Args:
        member_sequences: The sequence of each member, or None for a member that does not take part.
        names: The members' names.
        main: The number of the member whose vocabulary is used.
        vocabulary: Main's vocabulary.
        params: The request's options, with `max_new_tokens` already limited to the room there is.
        constraint: The constraint of the answer, at its start.
        prompt_text: The end of the prompt's text.
        never: Ids that no answer may contain, such as those without a token.
        starts_text: Whether the answer is the very start of a text, so that a dummy space does not belong to it.
        thoughts: The marks of thoughts that main may write.
        word_may_follow: Tells of main's ids whether it would have said them with a word directly behind them.

    Attributes:
        member_sequences: As given; also None for a member that failed and was dropped.
        needed: For each member, whether it is run; one that is not keeps its ids pending. Set by the decoder.
        token_ids: Main's ids chosen so far, without the stop token.
        record: What the policy has kept of them, see `WeighingInputs.record`; set by the decoder.
        prompt_likelihood: See `WeighingInputs.prompts`; None before it is known.
        trace_steps: What makes the record of each step so far from its line, if they are traced; the line of each step
            in `trace_lines`.
        finish_reason: Set once the sequence has ended.
        error: Set instead if the sequence failed.
        warnings: What the caller should know.
        submitted: When the caller made the request (`time.perf_counter`); its timeout counts from here.
    """

    def __init__(
        self,
        member_sequences: Sequence[MemberSequence | None],
        names: Sequence[str],
        main: int,
        vocabulary: Vocabulary,
        params: SamplingParams,
        constraint: Constraint | None = None,
        *,
        prompt_text: str = "",
        never: Sequence[int] = (),
        starts_text: bool,
        thoughts: Thoughts,
        word_may_follow: Callable[[Sequence[int]], bool],
    ) -> None:
        self.member_sequences = list(member_sequences)
        self.needed = [part is not None for part in member_sequences]
        assert params.max_new_tokens is not None, "set by the decoder"
        self.params = params
        self._most_tokens = params.max_new_tokens
        self.sampler = Sampler(params, [*never, *(sorted(vocabulary.stop_ids) if params.ignore_eos else ())])
        self.token_ids: list[int] = []
        self.record: list[float] = []
        self.prompt_text = prompt_text
        self.prompt_likelihood: PromptLikelihood | None = None
        self.logprobs: list[TokenLogprob] = []
        self.trace_steps: list[Callable[[int], TraceStep]] = []
        self.trace_lines: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: DeepenError | None = None
        self.warnings: list[str] = []
        self.submitted = time.perf_counter()
        self._all_parts = tuple(member_sequences)
        self._names = list(names)
        self._traced_names = tuple(n for n, part in zip(names, member_sequences, strict=True) if part is not None)
        self._main = main
        self._word_may_follow = word_may_follow
        self._vocabulary = vocabulary
        self._drop_space = starts_text and vocabulary.starts_with_space
        self._utf8 = Utf8Stream()
        self._marks = {token_id: token for token, token_id in thoughts.control.items()}
        self._listener = MarkListener(thoughts)
        self._constraint = constraint
        self._stops = StopMatcher(params.stop if params.stops_apply else ())
        self._shown: list[str] = []
        self._fresh_text = ""
        self._fresh_ids: list[int] = []
        self._traced = 0  # steps that `take_chunk` has returned
        self._admitted: float | None = None
        self._first_token: float | None = None
        self._ended: float | None = None
        if params.stop and not params.stops_apply:
            self.warnings.append(
                f"The stop strings were not applied: an answer cut at one would not follow the {params.constraint}."
            )

    @property
    def main_sequence(self) -> MemberSequence:
        """The main member's sequence."""
        part = self.member_sequences[self._main]
        assert part is not None, "main always takes part"
        return part

    @property
    def next_token(self) -> int:
        """Number of the answer's next token, counted from 1."""
        return len(self.token_ids) + 1

    @property
    def others_behind(self) -> bool:
        """Whether the other members wait for the rest of a character, or of a mark that only main writes."""
        return self._utf8.waiting or self._listener.inside

    @property
    def run_parts(self) -> list[MemberSequence]:
        """The sequences of the members that are run."""
        return [p for p, needed in zip(self.member_sequences, self.needed, strict=True) if needed and p is not None]

    @property
    def pending(self) -> int:
        """The largest number of ids that a member has to run before the next token."""
        return max(part.unread for part in self.run_parts)

    @property
    def begun(self) -> bool:
        """Whether any part of its prompt has been run."""
        return any(part.cached for part in self.member_sequences if part is not None)

    @property
    def ended(self) -> bool:
        """Whether the sequence has ended."""
        return self.finish_reason is not None or self.error is not None

    @property
    def out_of_time(self) -> bool:
        """Whether the request's timeout has passed."""
        return self.params.timeout is not None and time.perf_counter() - self.submitted >= self.params.timeout

    @property
    def chooses_freely(self) -> bool:
        """Whether the answer has no constraint."""
        return self._constraint is None

    def admit(self) -> None:
        """Records that the sequence has left the queue."""
        self._admitted = time.perf_counter()

    def choose(self, scores: torch.Tensor, own: torch.Tensor) -> int:
        """Chooses main's next token, among those that the constraint allows if there is one.

        Args:
            scores: Fused scores [vocabulary].
            own: Main's own logits [vocabulary].

        Raises:
            DecodingError: If the constraint fails.
        """
        history = self.main_sequence.ids if self.sampler.needs_history else ()
        if self._constraint is None:
            return self.sampler.choose(scores, history, self.token_ids)
        with self._following(self.next_token):
            allowed = self._constraint.allowed(len(scores), scores.device)
        return self.sampler.choose(masked(scores, own, allowed), history, self.token_ids)

    def accept(self, token_id: int) -> None:
        """Accepts main's next token: its text goes to the other members and, as far as it is certain, to the caller.

        Raises:
            DecodingError: If a member cannot be updated, or the constraint cannot continue.
        """
        self._first_token = self._first_token or time.perf_counter()
        if token_id in self._vocabulary.stop_ids:
            self.finish("stop")
            return
        self._fresh_text += self._stops.feed(self.speak(token_id))
        if self._stops.matched is not None or self._completes(token_id):
            self.finish("stop")
        elif len(self.token_ids) >= self._most_tokens:
            self.finish("length")

    def _completes(self, token_id: int) -> bool:
        """Advances the constraint by a token, and returns whether only the end may follow."""
        if self._constraint is None:
            return False
        with self._following(len(self.token_ids)):
            self._constraint.advance(token_id)
        return self._constraint.complete

    def _following(self, token: int) -> AbstractContextManager[None]:
        """Exceptions inside become failures of the constraint."""
        return told_as(partial(constraint_failed, token=token, constraint=self.params.constraint))

    def speak(self, token_id: int) -> str:
        """Appends a token of main's, updates the other members with its text, and returns that text as far as certain.

        Raises:
            DecodingError: If a member cannot be updated.
        """
        self.token_ids.append(token_id)
        self._fresh_ids.append(token_id)
        self.main_sequence.append_token(token_id)
        value, dummy = self._bytes(token_id)
        text = self._utf8.feed(value)
        heard = self._listener.text(text)
        mark = self._marks.get(token_id, "")
        if mark:
            self._listener.control(mark)
        before_word = heard.endswith(" ") and self._word_may_follow(self.token_ids)
        for member, part in enumerate(self.member_sequences):
            if part is not None and member != self._main:
                told = heard if part.opening is None else dummy + heard
                token, name = len(self.token_ids), self._names[member]
                with told_as(partial(telling_failed, token=token, member=name, text=told)):
                    part.append_text(told, before_word=before_word)
        return text + mark

    def _bytes(self, token_id: int) -> tuple[bytes, str]:
        """Returns the bytes of main's next token, and the dummy space before them that does not belong to the text."""
        value = self._vocabulary.token_bytes(token_id) or b""
        drops, self._drop_space = self._drop_space and bool(value), self._drop_space and not value
        return (value.removeprefix(b" "), " " * value.startswith(b" ")) if drops else (value, "")

    def finish(self, reason: FinishReason) -> None:
        """Ends the sequence and frees what its members keep."""
        self.finish_reason = reason
        self._fresh_text += self._stops.finish()
        self._ended = time.perf_counter()
        self.release(regularly=reason != "timeout")

    def time_out(self) -> None:
        """Ends the sequence because its timeout has passed."""
        if self.params.on_timeout == "return":
            self.finish("timeout")
            return
        self.fail(
            TimedOutError(
                f"The answer was not complete after {self.params.timeout:g} s: {len(self.token_ids)} of at most "
                f"{self._most_tokens} tokens were generated. Allow more time or fewer tokens, or take the "
                "partial answer with on_timeout='return'."
            )
        )

    def fail(self, error: DeepenError) -> None:
        """Ends the sequence with an error and frees what its members keep."""
        self.error = error
        self.release()

    def need(self, needed: Sequence[bool]) -> None:
        """Sets which members are run; the others give back what they have computed of the prompt."""
        self.needed = list(needed)
        for part, is_run in zip(self.member_sequences, needed, strict=True):
            if part is not None and not is_run:
                part.release()
                part.cached = 0

    def drop(self, member: int, warning: str) -> None:
        """Continues without a member, and adds a warning to the answer."""
        part = self.member_sequences[member]
        assert part is not None, "it takes part"
        part.end()
        self.member_sequences[member] = None
        self.warnings.append(warning)

    def release(self, *, regularly: bool = False) -> None:
        """Frees the key/value caches and the members' last logits; the sequence cannot continue afterwards.

        Args:
            regularly: As for `MemberSequence.end`.
        """
        for part in self.member_sequences:
            if part is not None:
                part.end(regularly=regularly)

    def take_chunk(self) -> Chunk | None:
        """Returns the output since the last call; the last chunk of a finished sequence carries the whole answer."""
        text, ids = self._fresh_text, self._fresh_ids
        if self.finish_reason is None and not text:
            return None
        self._fresh_text, self._fresh_ids = "", []
        self._shown.append(text)
        whole = None if self.finish_reason is None else self.generation()
        logprobs = None if self.params.logprobs is None else self.logprobs[len(self.token_ids) - len(ids) :]
        since, self._traced = self._traced, len(self.trace_steps)
        return Chunk(text, ids, self.finish_reason, whole, logprobs, self._trace(since))

    def _trace(self, since: int = 0) -> Trace | None:
        """Returns the trace from a step on, if one was asked for."""
        if not self.params.trace:
            return None
        made = partial(_records, self.trace_steps, self.trace_lines, range(since, len(self.trace_steps)))
        return Trace(self._names[self._main], self._traced_names, made)

    def generation(self) -> Generation:
        """Returns the answer of a finished sequence."""
        assert self.finish_reason is not None, "the sequence has not ended"
        ended = self._ended or self.submitted
        admitted = self._admitted or ended
        first = self._first_token or ended
        return Generation(
            text="".join(self._shown) + self._fresh_text,
            token_ids=list(self.token_ids),
            finish_reason=self.finish_reason,
            usage=Usage(self.main_sequence.prompt_tokens, len(self.token_ids)),
            logprobs=list(self.logprobs) if self.params.logprobs is not None else None,
            timings=Timings(first - admitted, ended - first, admitted - self.submitted),
            member_work=[
                MemberWork(
                    name,
                    part.prompt_tokens,
                    len(part.ids) - part.start,
                    part.tokens_run,
                    part.steps,
                )
                for name, part in zip(self._names, self._all_parts, strict=True)
                if part is not None
            ],
            warnings=list(self.warnings),
            trace=self._trace(),
        )


def _records(
    steps: Sequence[Callable[[int], TraceStep]], lines: Sequence[int], numbers: Sequence[int]
) -> list[TraceStep]:
    return [steps[number](lines[number]) for number in numbers]
