"""What the adapters share: options as fields, the ensemble that they name, and an answer's report as plain data."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError, model_validator
from typing_extensions import Self

from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.config.named_ensembles import ensemble_options
from deepen_core.config.sampling import ANSWER_TOKENS, THINKING_TOKENS
from deepen_core.errors import ClosedError, ConfigurationError, SamplingError
from deepen_integrations.load_options import DEMO, LoadOptions
from deepen_integrations.model_facts import ModelFacts
from deepen_integrations.option_names import known_options, own_name
from deepen_integrations.shared_ensembles import SharedEnsemble, adopted_ensemble, shared_ensemble

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.members.context_budget import ContextBudget
    from deepen_core.results import Generation, TokenLogprob
    from deepen_core.tracing import Trace

_OWN = LoadOptions.model_fields.keys() | SamplingParams.model_fields.keys()
"""The options that are not the frameworks'."""
_PACKAGE = __name__.partition(".")[0]
"""The package whose fields are validated when they are assigned."""


class DeepenAdapter(LoadOptions, SamplingParams):
    """An ensemble as pydantic fields: which one (`LoadOptions`) and how it answers (`SamplingParams`).

    List it after the framework's model class among the bases. Construction loads nothing; the first call does.
    """

    model_config = ConfigDict(extra="forbid", frozen=False, protected_namespaces=())
    __hash__ = None  # type: ignore[assignment]  # the options' hash is for frozen values

    only_chats: ClassVar[bool] = False
    """Whether every request is a conversation, so that members without a chat template are of no use."""
    progress: bool = Field(default=True, repr=False)
    """Show progress bars while models load, if stderr is a terminal."""
    strict: bool = False
    """Refuse schemas of tools and objects that decoding cannot follow in full. By default such a part is left out while
    decoding, with a warning, and checked in the finished answer. A call's own `strict` comes before this."""
    _shared: SharedEnsemble | None = PrivateAttr(default=None)
    """None after `close`."""

    @model_validator(mode="before")
    @classmethod
    def _options(cls, values: Any) -> Any:
        """Accepts the names that other models' classes have for options; None is "not given" for each."""
        if not isinstance(values, dict):
            return values
        framework = {name: value for name, value in values.items() if name in cls.model_fields.keys() - _OWN}
        given = known_options({name: value for name, value in values.items() if name not in framework})
        if "model" in given and "model" not in cls.model_fields:
            if "models" in given:
                raise ConfigurationError("Give either models, or model for a single one, not both.")
            model = given.pop("model")
            given["models"] = model if model == DEMO or isinstance(model, (list, tuple)) else [model]
        return {**framework, **given}

    @model_validator(mode="after")
    def _share_ensemble(self) -> Self:
        self._share()
        return self

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, **options: Any) -> Self:
        """Wraps a loaded ensemble, which remains its owner's to close.

        Args:
            ensemble: The ensemble.
            options: Fields of this class other than the load options.

        Raises:
            ConfigurationError: For a load option.
        """
        if fixed := LoadOptions.model_fields.keys() & options.keys():
            raise ConfigurationError(
                f"{', '.join(sorted(fixed))}: fixed by the loaded ensemble; pass it to Ensemble.load instead."
            )
        shared = adopted_ensemble(ensemble)  # referenced here until the adapter does
        return cls(models=shared.options.models, **options)

    @classmethod
    def from_config(cls, config: str | Path | Mapping[str, Any], **options: Any) -> Self:
        """Returns a model on an ensemble that is described in a YAML file.

        The description is read now, and its options become fields: copies and pickles hold them, not its name, and it
        shares the loaded ensemble with every adapter that has equal ones.

        Args:
            config: A name in `~/.config/deepen/ensembles.yaml`, the path of a file, or a mapping, as for
                `Ensemble.from_config`.
            options: Fields of this class, which replace those of the description.

        Raises:
            ConfigurationError: If there is no such ensemble, its file cannot be read, or an option is wrong.
        """
        return cls(**{**ensemble_options(config), **options})

    @classmethod
    def demo(cls, **options: Any) -> Self:
        """Wraps the embedded demo ensemble, which needs no network.

        Args:
            options: Fields of this class other than `models`.
        """
        return cls(models=DEMO, **options)

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble. Loads it unless an adapter with equal load options already has.

        Raises:
            ClosedError: After `close`.
            DeepenError: If it cannot be loaded.
        """
        return self.load_ensemble()

    def load_ensemble(self, *, chat: bool = False, within: SamplingParams | None = None) -> Ensemble:
        """Returns `ensemble`.

        Args:
            chat: Whether it is asked for a conversation, so that members without a chat template need not be loaded.
            within: Options of the request that it is asked for, whose timeout the load counts towards.

        Raises:
            ChatTemplateError: With `chat`, if it would have to load a member without a chat template.
            ClosedError: After `close`.
            TimedOutError: If the timeout passes first. The load goes on.
            DeepenError: If it cannot be loaded.
        """
        return self._held().ensemble(self.progress, chat=chat, within=within)

    async def aensemble(self, *, chat: bool = False, within: SamplingParams | None = None) -> Ensemble:
        """Like `load_ensemble`, but loads in a thread, so the event loop is not blocked."""
        return await self._held().aensemble(self.progress, chat=chat, within=within)

    def warm_up(self) -> None:
        """Loads the models and lets them answer briefly, so that the first request waits for neither.

        Raises:
            ChatTemplateError: If all requests are conversations, and a member has no chat template.
            ClosedError: After `close`.
            DeepenError: If the ensemble cannot be loaded, or fails.
        """
        self.load_ensemble(chat=self.only_chats).warm_up()

    async def awarm_up(self) -> None:
        """Like `warm_up`, but in a thread, so the event loop is not blocked."""
        await asyncio.to_thread(self.warm_up)

    @property
    def facts(self) -> ModelFacts:
        """Main's context window and whether conversations can be rendered, as far as known without loading."""
        return self._held().facts

    @property
    def budget(self) -> ContextBudget:
        """How much of a prompt fits all members. Loads no weights, but reads the members' tokenizers.

        Raises:
            ClosedError: After `close`.
            DeepenError: If a member's files cannot be found or used.
        """
        return self._held().budget()

    @property
    def has_chat_template(self) -> bool:
        """Whether every member has a chat template. Loads the ensemble, because only loading settles it.

        Raises:
            ClosedError: After `close`.
            DeepenError: If it cannot be loaded.
        """
        return self.load_ensemble().has_chat_template

    @property
    def model_name(self) -> str:
        """The members' names joined by `+`."""
        return self._held().name

    @property
    def max_tokens(self) -> int:
        """The frameworks' name for `max_new_tokens`; its default, if it was not given.

        The default is larger where main's chat template knows thoughts, as far as known without loading.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return THINKING_TOKENS if self.facts.thinks and self.reasoning is not False else ANSWER_TOKENS

    def __setattr__(self, name: str, value: Any) -> None:
        """Validates options as construction does; None restores an option's default.

        Raises:
            ConfigurationError: For a value outside an option's range.
        """
        name = "max_new_tokens" if name == "max_tokens" else name
        if name not in _OWN:
            super().__setattr__(name, self._checked_field(name, value) if self._declares(name) else value)
            return
        given = {} if value is None else {name: value}
        if name in SamplingParams.model_fields:
            others = {n: getattr(self, n) for n in SamplingParams.model_fields.keys() & self.model_fields_set - {name}}
            super().__setattr__(name, getattr(SamplingParams.parse({**others, **given}, ConfigurationError), name))
        else:
            super().__setattr__(name, getattr(LoadOptions(**{"models": self.models, **given}), name))
        if value is None:
            self.model_fields_set.discard(name)

    @classmethod
    def _declares(cls, name: str) -> bool:
        """Whether this package declares a field, rather than the framework."""
        kinds = (kind for kind in cls.__mro__ if kind.__module__.startswith(_PACKAGE))
        return name in cls.model_fields and any(name in vars(kind).get("__annotations__", {}) for kind in kinds)

    def _checked_field(self, name: str, value: Any) -> Any:
        field = type(self).model_fields[name]
        if value is None:
            return field.get_default(call_default_factory=True)
        kind: Any = Annotated[(field.annotation, *field.metadata, Field())]
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError as problem:
            said = problem.errors()[0]["msg"]
            raise ConfigurationError(f"Option {name!r} is {value!r}: {said}") from problem

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Like pydantic's, but validates options and takes `max_tokens` as well."""
        own = {
            name: value
            for name, value in (update or {}).items()
            if name in _OWN or name == "max_tokens" or self._declares(name)
        }
        others = {name: value for name, value in (update or {}).items() if name not in own}
        copied = super().model_copy(update=others, deep=deep)
        for name, value in own.items():
            setattr(copied, name, value)
        return copied

    def sampling(self, options: Mapping[str, Any]) -> SamplingParams:
        """Returns the sampling options of one call: this adapter's, overridden by the call's.

        Args:
            options: The call's keywords; None means the adapter's own value. Names of other models' options are
                translated, and those that have no effect are left out. Its timeout counts from here.

        Raises:
            SamplingError: For an unknown option or a value outside its range.
        """
        fields = {n: getattr(self, n) for n in SamplingParams.model_fields if n in self.model_fields_set}
        own: SamplingParams = SamplingParams.parse(fields, SamplingError)
        self._check_of_a_call(options)
        given = known_options(options)
        if "model" in given and given.pop("model") != self.model_name:
            raise SamplingError(
                f"A call cannot choose another model than {self.model_name!r}: construct another "
                f"{type(self).__name__} for it."
            )
        params = resolve_sampling(own, given)
        return params if params.timeout is None else params.asked_now()

    def _check_of_a_call(self, options: Mapping[str, Any]) -> None:
        """Refuses options by which models are loaded: a call cannot change them."""
        loading = LoadOptions.model_fields.keys() - SamplingParams.model_fields.keys()
        for name, value in options.items():
            if value is not None and own_name(name) in loading:
                here = "" if own_name(name) == name else f" ({own_name(name)!r} here)"
                raise SamplingError(
                    f"A call cannot change {name!r}{here}, by which the models are loaded: construct another "
                    f"{type(self).__name__} with it."
                )

    def with_options(self, **options: Any) -> Self:
        """Returns a copy with other sampling options, on the same ensemble.

        Args:
            options: Fields of `SamplingParams`, or `max_tokens`.

        Raises:
            SamplingError: For an unknown option or a value outside its range.
        """
        return super().model_copy(update=self.sampling(options).model_dump(exclude_unset=True))

    def close(self) -> None:
        """Releases the ensemble; later calls raise `ClosedError`.

        The models are freed once no other adapter holds them. An ensemble given to `from_ensemble` stays loaded.
        """
        self._shared = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def loading(self) -> LoadOptions:
        """Returns the options that name the ensemble. Fields that were changed are validated first.

        Raises:
            ConfigurationError: If a changed field is wrong.
        """
        shared = self._shared
        return shared.options if shared is not None and self._names(shared) else self._validated()

    def _held(self) -> SharedEnsemble:
        shared = self._shared
        if shared is None:
            raise ClosedError(f"This {type(self).__name__} was closed. Construct another one.")
        return shared if self._names(shared) else self._share()

    def _share(self) -> SharedEnsemble:
        """Takes the shared ensemble that the fields name.

        The fields become the very objects of its validated options, so `_names` detects a change by identity.
        """
        shared = self._shared = shared_ensemble(self._validated())
        self.__dict__.update(shared.options)
        return shared

    def _names(self, shared: SharedEnsemble) -> bool:
        """Whether no load option was changed since this ensemble was taken."""
        own = self.__dict__
        return all(own[name] is value for name, value in shared.options.__dict__.items())

    def _validated(self) -> LoadOptions:
        return LoadOptions(**{name: getattr(self, name) for name in LoadOptions.model_fields})


def report(answer: Generation, warnings: Sequence[str] = (), *, calls: bool = False) -> dict[str, Any]:
    """Returns everything about an answer but its text, as plain data.

    Args:
        answer: The answer.
        warnings: More than the engine's own.
        calls: Whether it calls tools, which is how it ended then, if it is complete.

    Returns:
        `finish_reason`, `usage` and `timings` in seconds; `warnings` if there are any; `logprobs` if they were
        requested, in OpenAI's shape, which both frameworks know; `trace` if it was, as `Trace.from_dict` reads it.
    """
    usage = answer.usage
    found: dict[str, Any] = {
        "finish_reason": "tool_calls" if calls and answer.finish_reason == "stop" else answer.finish_reason,
        "timings": {**asdict(answer.timings), "total_s": answer.timings.total_s},
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
    }
    if warnings := [*answer.warnings, *warnings]:
        found["warnings"] = warnings
    if answer.logprobs is not None:
        found["logprobs"] = openai_logprobs(answer.logprobs)
    if answer.trace is not None:
        found["trace"] = answer.trace.to_dict()
    return found


def trace_part(trace: Trace, *, last: bool) -> dict[str, Any]:
    """Returns the part of a trace that one piece of a stream has: its own steps; and the members, in the last piece.

    So parts that are added as LangChain adds chunks are a whole trace, as `Trace.from_dict` reads it.
    """
    whole = trace.to_dict()
    return whole if last else {"steps": whole["steps"]}


def openai_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Returns the log-probabilities of chosen tokens and their alternatives in OpenAI's shape."""
    return {"content": [_token(chosen) for chosen in tokens]}


def _token(chosen: TokenLogprob) -> dict[str, Any]:
    others = [_piece(token, logprob) for _, token, logprob in chosen.top]
    return {**_piece(chosen.token, chosen.logprob), "top_logprobs": others}


def _piece(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}
