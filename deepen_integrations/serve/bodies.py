"""The bodies of requests: what OpenAI's protocol has, checked strictly, and the engine's own sampling options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.config.base import explain
from deepen_core.config.constraints import CONSTRAINTS, is_deeper
from deepen_core.config.sampling import several_answers
from deepen_integrations.option_names import known_options
from deepen_integrations.serve.errors import ApiError

_DEEPEST = 200  # levels of lists and mappings in a body
_SEEDS = 2**63
_UNKNOWN_HERE = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": "answers are text",
    "prediction": "leave it out",
    "web_search_options": "leave it out",
    "num_ctx": "start the server with --max-context-window",
    "n_ctx": "start the server with --max-context-window",
}
"""Options of OpenAI's and of other servers that are refused, and the way out."""


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    """Whether a last event has the number of tokens."""


class Body(BaseModel):
    """What all requests for answers have. Fields that are not declared are options of `SamplingParams`."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())
    ignored: ClassVar[frozenset[str]] = frozenset(
        "user store metadata service_tier safety_identifier prompt_cache_key prompt_cache_retention verbosity "
        "modalities".split()
    )
    """Fields that are checked and have no effect."""
    outer: ClassVar[frozenset[str]] = frozenset({"model", "member", "stream", "stream_options", "n"})
    """Fields that are no options of the answer."""

    model: str
    member: str | None = None
    """A member of the ensemble, which answers alone."""
    trace: bool | None = None
    """Whether each choice has a `trace` of who decided what."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = Field(default=None, ge=-_SEEDS, lt=_SEEDS)
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream=true")
        return self

    @property
    def answers(self) -> int:
        """Number of answers to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def is_constrained(self) -> bool:
        """Whether the answer follows a grammar or a schema."""
        return any((self.model_extra or {}).get(name) is not None for name in CONSTRAINTS)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the answer, without those that were not given.

        Raises:
            ApiError: For an option of OpenAI's that is not supported.
        """
        declared = {name: getattr(self, name) for name in type(self).model_fields}
        given = {name: value for name, value in {**declared, **(self.model_extra or {})}.items() if value is not None}
        for name, way_out in _UNKNOWN_HERE.items():
            if name in given:
                raise ApiError(400, f"{name} is not supported: {way_out}.", code="unsupported_parameter", param=name)
        if self.seed is not None:
            given["seed"] = self.seed % _SEEDS
        return {name: value for name, value in given.items() if name not in self.ignored | self.outer}


class ChatBody(Body):
    """A request for `/v1/chat/completions`."""

    outer = Body.outer | {"messages"}

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None

    @property
    def is_constrained(self) -> bool:
        """As for `Body`; tools and objects have schemas."""
        return super().is_constrained or self.tools is not None or self.response_format is not None

    @property
    def options(self) -> dict[str, Any]:
        """As for `Body`; how hard the model thinks is the engine's `reasoning`."""
        given = super().options
        effort = given.pop("reasoning_effort", None)
        if effort is not None:
            given.setdefault("reasoning", False if effort == "none" else effort)
        return given


class CompletionBody(Body):
    """A request for `/v1/completions`."""

    outer = Body.outer | {"prompt", "echo", "best_of", "suffix"}

    prompt: Any
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if self.echo or self.suffix or self.best_of not in {None, self.answers}:
            raise ValueError("echo, suffix and best_of are not supported: leave them out")
        return self

    @property
    def prompts(self) -> list[str]:
        """The texts to continue.

        Raises:
            ApiError: If there are none, or they are not texts.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            message = "prompt is a text or a list of texts; token ids are not read, as each member has its own."
            raise ApiError(400, message, param="prompt")
        return prompts


_B = TypeVar("_B", bound=Body)


def parsed(raw: bytes, kind: type[_B]) -> _B:
    """Reads the body of a request.

    Args:
        raw: JSON.
        kind: The class of body.

    Raises:
        ApiError: If it is not JSON, or a field is wrong.
    """
    try:
        values = json.loads(raw, parse_constant=_refused)
    except (ValueError, RecursionError) as problem:
        raise ApiError(400, f"The body is not JSON: {problem}") from None
    if not isinstance(values, dict):
        raise ApiError(400, f"The body is a JSON {type(values).__name__}: give an object.")
    if is_deeper(values, _DEEPEST):
        raise ApiError(400, f"The body has more than {_DEEPEST} levels of lists and objects.")
    try:
        return kind.model_validate(values)
    except ValidationError as problem:
        places = [fault["loc"] for fault in problem.errors()]
        param = ".".join(map(str, places[0])) or None
        raise ApiError(400, explain(problem, kind), param=param) from None


def sampling_of(own: SamplingParams, options: Mapping[str, Any]) -> SamplingParams:
    """Returns the sampling options of a request, whose timeout counts from here.

    Args:
        own: Those of the ensemble, for what the request does not give.
        options: Those of the request, under any of their names.

    Raises:
        SamplingError: For an unknown option or a value outside its range.
    """
    return resolve_sampling(own, known_options(options)).asked_now()


def each_answer(params: SamplingParams, prompts: int, n: int) -> list[SamplingParams]:
    """Returns the options of `n` answers to each of several prompts, in the order of the prompts.

    Raises:
        SamplingError: If all answers to a prompt would be equal.
    """
    return several_answers(params, n) * prompts


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
