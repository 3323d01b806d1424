"""Options of one request."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator
from typing_extensions import Self

from deepen_core.config.constraints import CONSTRAINTS, HALVES, ConstraintOptions
from deepen_core.config.serving import MemberErrorPolicy
from deepen_core.errors import SamplingError

_LEAST_TEMPERATURE = 1e-4
_MOST_BIAS = 100.0
MAX_STOPS = 10_000
"""Maximum number of stop strings of a request. Checking 100,000 kept the caller's event loop busy for 40 ms."""
_NOT_VARIABLES = frozenset(
    "conversation messages tools chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)
"""Arguments of `apply_chat_template` that are not variables of the template, or are given in another way."""
THOUGHT_SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", True, False),  # Qwen, GLM, SmolLM3, Nemotron, EXAONE, Gemma
    ("thinking", True, False),  # DeepSeek, Granite, Kimi
    ("reasoning", True, False),  # Command A
    ("enable_reasoning", True, False),
    ("think", True, False),
    ("thinking_budget", -1, 0),  # Seed-OSS
)
"""Variables by which chat templates turn thoughts on and off: name, value for on, value for off."""
EFFORT_VARIABLES = ("reasoning_effort", "thinking_effort", "effort")
"""Variables by which chat templates are told how much to think."""
ANSWER_TOKENS = 256
"""Default of `max_new_tokens` for an answer."""
THINKING_TOKENS = 4096
"""Default of `max_new_tokens` where thoughts may come before the answer. Small models think for a few hundred to a few
thousand tokens, so that with 256 most answers would never begin; and without a limit, one that thinks in circles, as
they do under greedy decoding, would fill the whole window."""


@dataclass(frozen=True)
class _When:
    """A time that options carry without being others for it: any two are equal."""

    seconds: float | None = field(compare=False)


class SamplingParams(ConstraintOptions):
    """Options of one request. Unknown fields are rejected."""

    max_new_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of main-member tokens to generate, thoughts included; lowered to the room left in main's context
    window. By default 256; 4096 for a conversation if main's chat template lets the model think before it answers."""
    temperature: float = Field(default=0.0, ge=0.0, le=100.0, allow_inf_nan=False)
    """0 chooses the most probable token; from 0.0001 to 100 samples, the higher the more varied."""
    top_k: int | None = Field(default=None, ge=1)
    """Sample from the k most probable tokens."""
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    """Sample from the smallest set of tokens whose probabilities sum to p."""
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    """Sample from tokens whose probability is at least this share of the most probable token's."""
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0, allow_inf_nan=False)
    """Above 1, main-member tokens that occur in the prompt or the answer become less likely; from 0.01 to 100."""
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Subtracted from the logit of a main-member token for each time that it occurs in the answer; from -2 to 2."""
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Subtracted once from the logits of main-member tokens that occur in the answer; from -2 to 2."""
    penalty_window: int | None = Field(default=None, ge=1)
    """Only the last so many main-member tokens count for the three penalties; all by default."""
    logit_bias: dict[int, float] | None = None
    """Added to the logits of main-member tokens, by id, before all penalties; -100 rules a token out in effect. Ids are
    those of `Ensemble.tokenize`. A constraint's mask applies in any case."""
    stop: tuple[str, ...] = ()
    """The answer is cut before the first of these, at most 10,000; they match across token boundaries."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """The same seed gives the same text. The global random state is not touched."""
    deterministic: bool = False
    """The same answer, to the last bit, whatever else is decoded at the time: every forward of the request is its own,
    and nothing is copied from other requests. Several such requests take as long as one after the other. Without it,
    rounding depends a little on what is decoded beside a request, in half precision enough to change some answers."""
    logprobs: int | None = Field(default=None, ge=0, le=100)
    """Report the log-probability of each chosen token and of this many alternatives, before any constraint applies."""
    trace: bool = False
    """Record what each member would have said at each step, how much it counted, and how far fusion moved the choice:
    `Generation.trace`. The text stays the same."""
    timeout: float | None = None
    """Seconds after which the request ends with `finish_reason="timeout"` and the partial answer. They count from the
    call: preparing the prompt, compiling a grammar, waiting in the queue and a first load are included."""
    on_timeout: Literal["return", "raise"] = "return"
    """"raise" ends a request whose timeout passes with a `TimedOutError` instead, so that a fallback can take over."""
    max_argument_length: int | None = Field(default=None, ge=0)
    """Maximum number of characters of a string in a tool call's arguments, where the tool's schema sets no `maxLength`.
    By default twice `max_new_tokens`, so that a string takes about half of them: a model that is lost in a text can
    still complete its call. Lists without `maxItems` have at most an eighth of `max_new_tokens` items. 0 lifts both
    bounds."""
    ignore_eos: bool = False
    """Continue to `max_new_tokens` even if the ensemble would end the text. If a constraint allows nothing but the end,
    the text ends."""
    control_tokens: bool = False
    """Read control tokens in a text prompt as such: for text that a chat template has rendered already, or to fill in
    the middle. Each member reads those of its own. Leave it off where the text holds anything from a user.
    Conversations are not affected."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the members' chat templates, such as `{"enable_thinking": False}` or `{"reasoning_effort": "low"}`;
    those that a template does not know have no effect. `enable_thinking=False` may also be given by itself."""
    reasoning: bool | str | None = None
    """Whether the model thinks before it answers a conversation: True or False, an effort such as "low", or None for
    what the chat template does by itself. Set through the variable that main's template has for it; an error if it has
    none. Templates of other members follow as far as they can."""
    on_member_error: MemberErrorPolicy | None = None
    """What happens if a member other than main fails: "raise" ends this request with a `MemberError`, "drop" continues
    without the member and adds a note to `Generation.warnings`. The ensemble's policy by default."""

    @model_validator(mode="before")
    @classmethod
    def _max_tokens(cls, values: Any) -> Any:
        """Accepts `max_tokens`, the frameworks' name for `max_new_tokens`."""
        if isinstance(values, dict) and "max_tokens" in values:
            values = dict(values)
            wanted = values.pop("max_tokens")
            if wanted is not None and values.get("max_new_tokens") is not None:
                raise ValueError("give max_new_tokens or max_tokens, not both")
            values["max_new_tokens"] = values.get("max_new_tokens") if wanted is None else wanted
        return values

    @model_validator(mode="before")
    @classmethod
    def _not_given(cls, values: Any) -> Any:
        """Takes None for "not given" where it is no value of the option."""
        return _given(values) if isinstance(values, dict) else values

    @model_validator(mode="before")
    @classmethod
    def _enable_thinking(cls, values: Any) -> Any:
        """Accepts `enable_thinking`, the most common of the variables of chat templates."""
        if isinstance(values, dict) and "enable_thinking" in values:
            values = dict(values)
            wanted = values.pop("enable_thinking")
            given = values.get("chat_template_kwargs") or {}
            if wanted is not None and isinstance(given, Mapping):
                values["chat_template_kwargs"] = {**given, "enable_thinking": wanted}
        return values

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _free_variables(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise ValueError("give a mapping of names to values, such as {'enable_thinking': False}")
        if taken := sorted(_NOT_VARIABLES.intersection(value)):
            raise ValueError(f"{', '.join(taken)}: set by the engine, so leave it out")
        return dict(value)

    @field_validator("reasoning")
    @classmethod
    def _some_effort(cls, value: bool | str | None) -> bool | str | None:
        if value == "":
            raise ValueError("give True, False, or an effort such as 'low'")
        return value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _by_id(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ValueError("give a mapping of token ids to numbers, such as {42: -100}")
        for token, bias in value.items():
            if isinstance(token, bool) or not (
                (isinstance(token, int) and token >= 0) or (isinstance(token, str) and token.isdecimal())
            ):
                raise ValueError(
                    f"{token!r} is no token id: a text may be several tokens, or others after a space; look up the ids "
                    "with Ensemble.tokenize"
                )
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -_MOST_BIAS <= bias <= _MOST_BIAS:
                raise ValueError(f"the bias of token {token} is {bias!r}: give a number from -100 to 100")
        return {int(token): float(bias) for token, bias in value.items()} or None

    @field_validator("temperature")
    @classmethod
    def _not_tiny(cls, value: float) -> float:
        if 0.0 < value < _LEAST_TEMPERATURE:
            raise ValueError(
                f"use 0 for the most probable token, or at least {_LEAST_TEMPERATURE}: logits divided by less overflow"
            )
        return value

    @field_validator("timeout")
    @classmethod
    def _some_time(cls, value: float | None) -> float | None:
        if value is not None and not value > 0.0:
            raise ValueError("it would end the request before its first token; give more than 0 seconds, or None")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_strings(cls, value: Any) -> Any:
        strings = () if value is None else (value,) if isinstance(value, str) else value
        if isinstance(strings, Mapping) or not isinstance(strings, Iterable):
            raise ValueError("give a string or a list of strings")
        strings = tuple(islice(strings, MAX_STOPS + 1))
        if len(strings) > MAX_STOPS:
            raise ValueError(f"there are more than {MAX_STOPS:,} stop strings, which is the limit")
        for string in strings:
            if not isinstance(string, str):
                raise ValueError(f"{string!r} is not a string; give a string or a list of strings")
            if not string:
                raise ValueError("an empty stop string would end every answer at once; leave it out")
            if HALVES.search(string):
                raise ValueError(f"{string!r} holds half a character (a lone surrogate), which no answer can contain")
        return strings

    _asked: _When = PrivateAttr(default_factory=lambda: _When(None))

    @property
    def asked(self) -> float | None:
        """When the request was made (`time.perf_counter`), if that was before the engine got it."""
        return self._asked.seconds

    def asked_now(self) -> Self:
        """Returns these options of a request that is made now: its timeout counts from here."""
        return self.asked_at(time.perf_counter())

    def asked_at(self, when: float | None) -> Self:
        """Returns these options of a request that was made at some time; None for when the engine gets it."""
        copied = self.model_copy()
        copied._asked = _When(when)  # noqa: SLF001  of this class
        return copied

    @property
    def answer_tokens(self) -> int:
        """`max_new_tokens`, or its default for an answer without thoughts."""
        return ANSWER_TOKENS if self.max_new_tokens is None else self.max_new_tokens


def resolve_sampling(params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
    """Merges parameters with keyword options, which take precedence.

    Raises:
        SamplingError: For an unknown option or a value outside its range.
    """
    if params is not None and not isinstance(params, SamplingParams):
        raise SamplingError(f"params is a {type(params).__name__}: pass a SamplingParams, and options by keyword.")
    if params is not None and not options:
        return params
    values = {} if params is None else params.model_dump(exclude_unset=True)
    if options.get("max_tokens") is not None:
        values.pop("max_new_tokens", None)
    values = _without_replaced_switches(values, options)
    if any(options.get(name) is not None for name in CONSTRAINTS):
        values |= {name: None for name in CONSTRAINTS if name in values}  # a new constraint replaces the old one
    merged: SamplingParams = SamplingParams.parse({**values, **_given(options)}, SamplingError)
    return merged if params is None or params.asked is None else merged.asked_at(params.asked)


def several_answers(params: SamplingParams, n: int) -> list[SamplingParams]:
    """Returns the options of each of several answers to one prompt: with a seed, each further answer has the next one.

    Args:
        params: The options of the request.
        n: Number of answers.

    Raises:
        SamplingError: If all answers would be equal.
    """
    if n > 1 and params.temperature == 0:
        raise SamplingError(f"n is {n}, but with temperature 0 all {n} answers are equal: set it above 0.")
    if n == 1 or params.seed is None:
        return [params] * n
    return [resolve_sampling(params, {"seed": (params.seed + number) % 2**63}) for number in range(n)]


def _without_replaced_switches(values: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's own values without the switch of thoughts that a call gives in another way."""
    switches = {*EFFORT_VARIABLES, *(name for name, _, _ in THOUGHT_SWITCHES)}
    own, given = values.get("chat_template_kwargs"), options.get("chat_template_kwargs")
    if options.get("reasoning") is not None and own:
        return {**values, "chat_template_kwargs": {n: v for n, v in own.items() if n not in switches}}
    replaced = options.get("enable_thinking") is not None or (
        isinstance(given, Mapping) and not switches.isdisjoint(given)
    )
    return {name: value for name, value in values.items() if name != "reasoning"} if replaced else values


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what is None where None is no value of the option."""
    known = SamplingParams.model_fields
    return {n: v for n, v in options.items() if v is not None or n not in known or known[n].default is None}
