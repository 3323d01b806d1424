"""What the adapters share: their options, the ensemble behind them, and what is told beside a text."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import Self

from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.errors import ClosedError, ConfigurationError, SamplingError
from deepen_integrations.load_options import DEMO, LoadOptions
from deepen_integrations.model_facts import Facts
from deepen_integrations.shared_ensembles import SharedEngine, adopted_engine, shared_engine

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.results import Generation, TokenLogprob


class DeepenAdapter(LoadOptions, SamplingParams):
    """An ensemble as fields: which one (`LoadOptions`) and how it answers (`SamplingParams`).

    To be mixed into a framework's model class, after it. Constructing loads nothing; the first call does.
    """

    model_config = ConfigDict(extra="forbid", frozen=False, protected_namespaces=())
    __hash__ = None  # type: ignore[assignment]  # the options' hash is for frozen values

    progress: bool = Field(default=True, repr=False)
    """Show progress bars while models load."""
    _engine: SharedEngine | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _hold_engine(self) -> Self:
        self._engine = shared_engine(self.loading())
        return self

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, **options: Any) -> Self:
        """An adapter for an ensemble that is already loaded, and which its owner closes.

        Args:
            ensemble: The ensemble.
            options: Fields of this class other than the loading options.

        Raises:
            ConfigurationError: For a loading option.
        """
        if fixed := LoadOptions.model_fields.keys() & options.keys():
            raise ConfigurationError(
                f"{', '.join(sorted(fixed))}: fixed by the loaded ensemble; pass it to Ensemble.load instead."
            )
        engine = adopted_engine(ensemble)
        return cls(models=engine.options.models, **options)

    @classmethod
    def demo(cls, **options: Any) -> Self:
        """An adapter for the embedded demo ensemble, which needs no network.

        Args:
            options: Fields of this class other than `models`.
        """
        return cls(models=DEMO, **options)

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble, loaded now if no adapter with equal loading options has loaded it yet.

        Raises:
            ClosedError: After `close`.
            DeepenError: If it cannot be loaded.
        """
        return self._held().ensemble(self.progress)

    async def aensemble(self) -> Ensemble:
        """As `ensemble`, for an event loop, which goes on while a thread loads.

        Raises:
            ClosedError: After `close`.
            DeepenError: If it cannot be loaded.
        """
        return await self._held().aensemble(self.progress)

    @property
    def facts(self) -> Facts:
        """The ensemble's window and whether it takes conversations, as far as known without loading it."""
        return self._held().facts

    @property
    def has_chat_template(self) -> bool:
        """Whether every member takes conversations. Loads the ensemble, which knows for certain.

        Raises:
            ClosedError: After `close`.
            DeepenError: If it cannot be loaded.
        """
        engine = self._held()
        engine.ensemble(self.progress)
        return engine.facts.has_chat_template

    @property
    def model_name(self) -> str:
        """The members' names joined by `+`."""
        return self._held().name

    @property
    def max_tokens(self) -> int:
        """The frameworks' name of `max_new_tokens`."""
        return self.max_new_tokens

    def sampling(self, options: Mapping[str, Any]) -> SamplingParams:
        """The options of one call: this adapter's, replaced by those of the call.

        Args:
            options: What the call gave by keyword. `stop=None` means the adapter's own stop strings.

        Raises:
            SamplingError: For an unknown option or a value outside its range.
        """
        fields = {n: getattr(self, n) for n in SamplingParams.model_fields if n in self.model_fields_set}
        own: SamplingParams = SamplingParams.parse(fields, SamplingError)
        given = {name: value for name, value in options.items() if (name, value) != ("stop", None)}
        return resolve_sampling(own, given)

    def with_options(self, **options: Any) -> Self:
        """A copy that answers with other sampling options, on the same ensemble.

        Args:
            options: Fields of `SamplingParams`, or `max_tokens`.

        Raises:
            SamplingError: For an unknown option or a value outside its range.
        """
        return self.model_copy(update=self.sampling(options).model_dump(exclude_unset=True))

    def close(self) -> None:
        """Lets go of the ensemble, after which calls fail.

        The models are released when no other adapter holds them; those given to `from_ensemble` stay loaded.
        """
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def loading(self) -> LoadOptions:
        """Which ensemble this adapter stands for."""
        return LoadOptions(**{name: getattr(self, name) for name in LoadOptions.model_fields})

    def _held(self) -> SharedEngine:
        if self._engine is None:
            raise ClosedError(f"This {type(self).__name__} was closed. Construct another one.")
        if self._engine.options != (wanted := self.loading()):
            self._engine = shared_engine(wanted)
        return self._engine


def report(answer: Generation) -> dict[str, Any]:
    """What is told beside the text of an answer, as plain data.

    Returns:
        `finish_reason` and `usage`; `warnings` if there are any; `logprobs` if they were asked for, in the
        shape that both frameworks know from OpenAI.
    """
    usage = answer.usage
    told: dict[str, Any] = {
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
    }
    if answer.warnings:
        told["warnings"] = list(answer.warnings)
    if answer.logprobs is not None:
        told["logprobs"] = {"content": [_token(chosen) for chosen in answer.logprobs]}
    return told


def _token(chosen: TokenLogprob) -> dict[str, Any]:
    others = [_piece(token, logprob) for _, token, logprob in chosen.top]
    return {**_piece(chosen.token, chosen.logprob), "top_logprobs": others}


def _piece(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}
