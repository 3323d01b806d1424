"""What callers get back: plain frozen records without tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from deepen_core.tracing import Trace

FinishReason = Literal["stop", "length", "cancelled", "timeout"]

ONE_AT_A_TIME = "one sequence at a time"
"""The beginning of `MemberInfo.batching` for a member that cannot run several sequences in one forward."""


@dataclass(frozen=True)
class Usage:
    """Token counts in the main member's tokenizer."""

    prompt_tokens: int
    """Tokens of the prompt, including BOS and chat-template tokens."""
    completion_tokens: int
    """Tokens generated, without the end-of-text token."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class MemberTokenLogprob:
    """One member's own prediction for a chosen token."""

    name: str
    token_id: int | None
    """The member's own id of the same bytes; None if it has no such token."""
    logprob: float | None
    """Natural logarithm of the member's probability; None if it has no such token or took no part in this step."""
    top: tuple[tuple[int, bytes, float], ...] = ()
    """The member's most probable tokens as (id, bytes, log-probability), best first."""


@dataclass(frozen=True)
class TokenLogprob:
    """One chosen token with its fused log-probability and the best alternatives."""

    token_id: int
    token: bytes
    logprob: float
    """Natural logarithm of the fused probability, before temperature, truncation and a constraint's mask."""
    top: tuple[tuple[int, bytes, float], ...] = ()
    """The most probable tokens as (id, bytes, log-probability), best first."""
    members: tuple[MemberTokenLogprob, ...] = ()
    """The same under each member alone."""


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one request."""

    prefill_s: float
    """From the first forward to the first token."""
    decode_s: float
    """From the first token to the end."""
    queue_s: float = 0.0
    """Before the first forward, while other requests filled the batch."""

    @property
    def total_s(self) -> float:
        """From the first forward to the end."""
        return self.prefill_s + self.decode_s


@dataclass(frozen=True)
class MemberWork:
    """How many tokens one member ran for a request, compared to the length of its own text."""

    name: str
    prompt_tokens: int
    """Tokens of the prompt in this member's tokenizer."""
    text_tokens: int
    """Tokens of the generated text in this member's tokenizer."""
    tokens_run: int
    """Tokens run through the model after the prompt; re-tokenised ones count each time."""
    steps: int = 0
    """Steps of the answer in which it was asked: fewer than main where a gate let main decide alone."""


@dataclass(frozen=True)
class Generation:
    """The finished answer to one prompt."""

    text: str
    """Generated text, without the prompt and without the stop string."""
    token_ids: list[int]
    """Main-member ids in the order they were chosen, without the end-of-text token."""
    finish_reason: FinishReason
    usage: Usage
    logprobs: list[TokenLogprob] | None = None
    """One entry per token of `token_ids`, if `SamplingParams.logprobs` asked for them."""
    timings: Timings = Timings(0.0, 0.0)
    member_work: list[MemberWork] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Notes for the caller: a lowered `max_new_tokens`, a member that failed and was dropped, stop strings that were
    not applied because of a constraint."""
    trace: Trace | None = None
    """What each member said at each step, if `SamplingParams.trace` asked for it."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; joined, the pieces are `Generation.text`."""

    text: str
    """New text; empty in the last chunk when nothing was held back."""
    token_ids: list[int] = field(default_factory=list)
    """Main-member ids chosen since the last chunk."""
    finish_reason: FinishReason | None = None
    """Set on the last chunk only."""
    generation: Generation | None = None
    """The whole answer, on the last chunk only."""
    logprobs: list[TokenLogprob] | None = None
    """One entry per token of `token_ids`, if `SamplingParams.logprobs` asked for them."""
    trace: Trace | None = None
    """The steps since the last chunk, if `SamplingParams.trace` asked for them."""


class _OfBytes:
    """Log-probabilities of a text, and what they come to by its bytes."""

    logprobs: list[float]
    bytes: int

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation in nats."""
        return sum(self.logprobs)

    @property
    def bits_per_byte(self) -> float:
        """Bits that a byte of the continuation takes, which compares models whose tokens differ; 0 if it is empty."""
        return -self.total / (self.bytes * math.log(2)) if self.bytes else 0.0


@dataclass(frozen=True)
class MemberScore(_OfBytes):
    """Log-probabilities of a text under one member alone, in its own tokens."""

    name: str
    token_ids: list[int]
    logprobs: list[float]
    """Nats, one per id of `token_ids`."""
    bytes: int
    """Length of the continuation in UTF-8 bytes."""


@dataclass(frozen=True)
class Score(_OfBytes):
    """Log-probabilities of a given continuation."""

    token_ids: list[int]
    """Main-member ids of the continuation."""
    logprobs: list[float]
    """Fused log-probabilities in nats, one per id."""
    bytes: int
    """Length of the continuation in UTF-8 bytes, to compare models whose tokens differ."""
    members: list[MemberScore] = field(default_factory=list)
    greedy: list[bool] | None = None
    """For each id, whether it is the most probable one after those before it; None if that was not asked for."""


@dataclass(frozen=True)
class SpaceInfo:
    """The relative space of one member, where a strategy has one."""

    temperature: float
    """Temperature of the relative representation, after calibration."""
    self_mass: float
    """Median share of an anchor's row that stays on the anchor itself; near zero, the space carries no signal."""
    effective_support: float
    """Median number of anchors that an anchor's row spreads over, the exponential of its entropy."""
    rows_built: int
    """Number of rows built so far; others are built when needed."""
    bytes_held: int
    """Memory of the space."""


@dataclass(frozen=True)
class FusionInfo:
    """The report of a fusion strategy."""

    anchors: int | None = None
    """Number of byte strings that are a token of every member; None if the strategy does not look for any."""
    bytes_held: int = 0
    """Memory beyond the models' own weights."""
    limits: list[str] = field(default_factory=list)
    """What it cannot do with these members, however well they fit."""
    chosen: str | None = None
    """The strategy that `"auto"` has chosen, and why; None for others."""
    spaces: list[SpaceInfo] | None = None
    """One per member; None if the strategy has no relative spaces."""


@dataclass(frozen=True)
class Elsewhere:
    """Where a member runs that is not in this process, and what it took to reach it."""

    place: str
    """The machine and the process, or the address."""
    top_k: int | None = None
    """Number of most probable tokens whose log-probabilities it sends; None for all."""
    bytes_sent: int = 0
    """Of messages to it since it was loaded, without the envelope of what carries them."""
    bytes_received: int = 0
    """Of its replies."""
    restarts: int = 0
    """Number of times that it was started again."""


@dataclass(frozen=True)
class MemberInfo:
    """Facts about one member."""

    name: str
    architecture: str
    parameters: int
    vocabulary_size: int
    """Number of logits, for transformers models the length of the embedding matrix."""
    context_window: int
    """Tokens, by this member's tokenizer."""
    weight: float
    """Normalised: the weights of an ensemble sum to one."""
    device: str
    dtype: str
    stop_tokens: list[str]
    has_chat_template: bool
    temperature: float | None
    """Of the relative representation, after calibration; None if the strategy has no relative space."""
    self_mass: float | None
    """Median share of an anchor's row that stays on the anchor itself; near zero, the space carries no signal."""
    effective_support: float | None
    """Median number of anchors that an anchor's row spreads over, the exponential of its entropy."""
    rows_built: int
    """Number of rows of the relative space built so far; others are built when needed."""
    bytes_per_token: float
    """Mean length of this member's tokens on a sample text."""
    space_bytes: int
    """Memory held by the relative space."""
    batching: str = ONE_AT_A_TIME
    """How it runs the sequences of a step: "ragged" runs all in one forward, "one sequence at a time: ..." gives the
    reason why not. Unknown for a member that is never run (weight 0)."""
    source_window: int | None = None
    """Maximum number of tokens of a prompt, for a member whose encoder reads it and whose `context_window` holds the
    answer alone; None for others."""
    elsewhere: Elsewhere | None = None
    """Where it runs, for a member in another process."""


@dataclass(frozen=True)
class EnsembleInfo:
    """The report of `Ensemble.info`."""

    members: list[MemberInfo]
    main: str
    fusion: str
    anchors: int | None
    """Number of byte strings that are a token of every member, without the stop anchor; None if not needed."""
    context_window: int
    """Size of the smallest context window of the members that take part, in tokens."""
    bytes_held: int
    """Memory of the fusion (relative spaces, columns) beyond the models' own weights."""
    warnings: list[str] = field(default_factory=list)
    """Measured reasons why fusion may not help (weak signal, tokens of very different length) or batches may not (a
    member that runs one sequence at a time)."""
    limits: list[str] = field(default_factory=list)
    """What fusion cannot do with these members, however well they fit; empty for a single one."""
    weight_policy: str = "static"
    """How weights change: "static" if they do not; else `MemberInfo.weight` is what they start from."""
    gate: str | None = None
    """Where the other members are asked; None for everywhere."""
    chosen: str | None = None
    """With fusion "auto", the strategy that it has chosen, and why."""
