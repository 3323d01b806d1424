"""Several local language models as one: load, generate, stream, score, close."""

from __future__ import annotations

import warnings as python_warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from deepen_core.config import MemberConfig, MemberErrorPolicy, SamplingParams, StrategyOptions
from deepen_core.config.constraints import can_constrain
from deepen_core.config.named_ensembles import ensemble_options
from deepen_core.config.prompts import FormOption
from deepen_core.demo import MEMBERS, TRANSLATOR, member_paths, unread
from deepen_core.engine.builder import EngineOptions
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.engine import Engine
from deepen_core.engine.forks import before_computing
from deepen_core.engine.frontend import GenerationAPI
from deepen_core.engine.prompt_facts import PromptFacts
from deepen_core.engine.report import engine_info, engine_warnings
from deepen_core.engine.worker import Worker, closed_error
from deepen_core.errors import ChatTemplateError, CompatibilityWarning, ConfigurationError
from deepen_core.evaluation.measures import Measures
from deepen_core.fusion.gates import Gate
from deepen_core.fusion.policies import WeightPolicy
from deepen_core.members.base import Member, close, closed_on_error
from deepen_core.members.context_budget import ContextBudget
from deepen_core.members.loading import (
    describe_member,
    given_members,
    load_members,
    main_index,
    member_configs,
    with_prompts,
)
from deepen_core.results import EnsembleInfo


class Ensemble(GenerationAPI, PromptFacts, Measures):
    r"""Several local language models with different tokenizers and architectures that answer as one.

    Create one with `Ensemble.load` or `Ensemble.demo`. It may be used from any number of threads and event loops; their
    requests are decoded together.

    Examples:
        >>> with Ensemble.demo() as ens:
        ...     print(ens.generate("Question: Where does Felix live?\nAnswer:").text)
    """

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self._loaded: Sequence[Member] = ()  # members that end with it
        self._worker = engine.worker
        # The worker has no reference to the ensemble; dropping the ensemble ends its worker.
        weakref.finalize(self, engine.worker.stop, wait=False)
        self._warnings = engine_warnings(engine)
        for warning in self._warnings:
            python_warnings.warn(warning, CompatibilityWarning, stacklevel=3)

    @classmethod
    def load(
        cls,
        models: Sequence[str | Path | MemberConfig | Mapping[str, Any]],
        *,
        main: int | str = 0,
        weights: Sequence[float] | str | WeightPolicy | None = None,
        fusion: str | StrategyOptions | Mapping[str, Any] = "deepen",
        gate: float | Gate | None = None,
        prompts: Sequence[FormOption | None] | Mapping[str, FormOption] | None = None,
        device: str | None = None,
        dtype: str = "auto",
        max_batch_size: int = 32,
        max_context_window: int | None = None,
        on_member_error: MemberErrorPolicy = "raise",
        max_waiting: int | None = 10_000,
        step_timeout: float | None = None,
        chat: bool = False,
        progress: bool = True,
    ) -> Ensemble:
        """Loads the members; all options, files and tokenizers are checked before any weights are read.

        Progress is also logged to "deepen_core" at level INFO, with the seconds that each step took.

        Args:
            models: Model folders in transformers format, hub ids, or `MemberConfig`s.
            main: Index or name of the member whose vocabulary is used.
            weights: One number per member, or a policy that starts from each `MemberConfig.weight`, which are equal by
                default: "adaptive" (members that predict the text better gain weight), "confidence" (members that are
                surer of a token count more), "consistency" (members that agree with the others and are sure count
                more), "perplexity" (members that find the prompt likelier count more, up to all), "context" (as
                "adaptive", starting with members that find the prompt likelier) or "static". Shares to start from may
                follow the name ("perplexity:0.9,0.1"). Or a `WeightPolicy` of your own. By default "context" if
                the strategy compares tokens ("deepen", "product", "bytes" and "auto"), or "adaptive" where a server of
                llama.cpp runs a member; with the other strategies "static".
            fusion: How distributions are fused: "deepen", "deepen-paper", "product", "union", "translate", "bytes",
                "auto", or the options of one (`FusionConfig`, `ProductConfig`, `UnionConfig`, `TranslateConfig`,
                `BytesConfig`).
            gate: Saves time: the other members are asked only where main gives its most probable token less than this
                probability, and catch up when they are. Or a `Gate` of your own. By default they are always asked.
            prompts: What each member is shown in place of a prompt, see `MemberConfig.prompt`: one for each, or by the
                members' names.
            device: For members that do not set their own; a GPU if there is one, else the CPU.
            dtype: For members that do not set their own; "auto" uses the checkpoint's.
            max_batch_size: Maximum number of requests decoded together; the others wait, first come, first served.
            max_context_window: Caps the context window of every member, in its own tokens.
            on_member_error: What happens to a request if a member fails (out of memory, no finite logits): "raise" ends
                it with a `MemberError`, "drop" continues without the member and adds a note to `Generation.warnings`.
                The main member cannot be dropped.
            max_waiting: Maximum number of requests that wait. A call beyond them raises `QueueFullError`; what one call
                asks for, such as a list of prompts, is taken on as a whole. None for no limit.
            step_timeout: Seconds that a member may take for a step. One that takes longer fails with a
                `MemberTimeoutError`, to which `on_member_error` applies, and takes part again once the step has ended;
                meanwhile the others go on without it. Its first steps are not limited, since they may compile. By
                default there is no limit.
            chat: Whether every prompt will be a conversation, so that members without a chat template are of no use:
                they are rejected at once, instead of with the first prompt.
            progress: Show what is being done and how much is left, if stderr is a terminal.

        Raises:
            ChatTemplateError: With `chat`, if a member that takes part has no chat template.
            ConfigurationError: For options that contradict each other or the members, a device without enough memory,
                or a model that needs something that is not installed or not allowed.
            MemberError: If a member fails when it is tried.
            ModelFilesError: If a model's files are missing, damaged or in another format.
            TokenizerError: If a tokenizer cannot be used.
            NoCommonTokensError: If the members share no token, and the strategy needs some.
        """
        configs = with_prompts(member_configs(models), prompts)
        names = [str(c.name) for c in configs]
        options = EngineOptions.checked(
            names,
            main,
            weights,
            fusion,
            max_batch_size,
            on_member_error,
            models=[c.model for c in configs],
            shares=[c.weight for c in configs],
            max_context_window=max_context_window,
            gate=gate,
            max_waiting=max_waiting,
            step_timeout=step_timeout,
        )
        before_computing()
        with options.steps("Loading", progress=progress, described=True) as steps:
            described = []
            for c in configs:
                with steps.doing(f"{c.name}: reading its tokenizer"):
                    described.append(describe_member(c, device, dtype, max_context_window, progress=steps.shown))
            if chat:
                options.check_templates(described)
            options.check_members(described, steps)
            members = load_members(described, steps)
            with closed_on_error(members):
                engine = options.build(members, steps)
        ensemble = cls(engine)
        ensemble._loaded = members
        return ensemble

    @classmethod
    def from_config(
        cls,
        config: str | Path | Mapping[str, Any],
        *,
        chat: bool = False,
        progress: bool = True,
        **changes: Any,
    ) -> Ensemble:
        """Loads an ensemble that is described in a YAML file.

        Args:
            config: A name in `~/.config/deepen/ensembles.yaml` (see `ensembles_file`), the path of a file with one
                ensemble, or a mapping of the arguments of `load`.
            chat: As for `load`.
            progress: As for `load`.
            changes: Arguments of `load` that replace those of the description.

        Raises:
            ConfigurationError: If there is no such ensemble, its file cannot be read, or it has unknown options.
            DeepenError: As for `load`.
        """
        options = ensemble_options({**ensemble_options(config), **changes})
        return cls.load(**options, chat=chat, progress=progress)

    @classmethod
    def read_budget(
        cls,
        models: Sequence[str | Path | MemberConfig | Mapping[str, Any]],
        *,
        main: int | str = 0,
        weights: Sequence[float] | str | None = None,
        prompts: Sequence[FormOption | None] | Mapping[str, FormOption] | None = None,
        max_context_window: int | None = None,
    ) -> ContextBudget:
        """Reads how much of a prompt would fit all members of an ensemble, without their weights.

        Args:
            models: As for `load`, as the other arguments. Small files of hub ids are downloaded.
            main: Index or name of the main member.
            weights: Members without a weight do not count.
            prompts: As for `load`.
            max_context_window: Caps the context window of every member.

        Raises:
            ConfigurationError: For wrong options, or a model that cannot be a member.
            ModelFilesError: If a model's files are missing, damaged or in another format.
            TokenizerError: If a tokenizer cannot be used.
        """
        configs = with_prompts(member_configs(models), prompts)
        options = EngineOptions.checked(
            [str(c.name) for c in configs],
            main,
            weights,
            "deepen",
            max_batch_size=1,
            on_member_error="raise",
            models=[c.model for c in configs],
            shares=[c.weight for c in configs],
            max_context_window=max_context_window,
        )
        return options.budget([describe_member(c, "cpu", None, max_context_window, progress=False) for c in configs])

    @classmethod
    def from_members(
        cls,
        members: Sequence[Member],
        *,
        main: int | str = 0,
        weights: Sequence[float] | str | WeightPolicy | None = None,
        fusion: str | StrategyOptions | Mapping[str, Any] = "deepen",
        gate: float | Gate | None = None,
        max_batch_size: int = 32,
        on_member_error: MemberErrorPolicy = "raise",
        max_waiting: int | None = 10_000,
        step_timeout: float | None = None,
        progress: bool = False,
    ) -> Ensemble:
        """Creates an ensemble of loaded members of any kind.

        Args:
            members: Objects that implement `deepen_core.members.base.Member`, each with a unique name. Every ensemble
                runs its members in a thread of its own, so a member must not serve two open ensembles at once.
            main: Index or name of the member whose vocabulary is used.
            weights: As for `load`; policies start from equal weights.
            fusion: As for `load`.
            gate: As for `load`.
            max_batch_size: As for `load`.
            on_member_error: As for `load`.
            max_waiting: As for `load`.
            step_timeout: As for `load`.
            progress: As for `load`.

        Raises:
            ConfigurationError: For options that contradict each other or the members.
            MemberError: If a member fails when it is tried.
            NoCommonTokensError: If the members share no token, and the strategy needs some.
        """
        names = [m.name for m in members]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(f"The members are {names}: give at least one, and each a name of its own.")
        options = EngineOptions.checked(
            names,
            main,
            weights,
            fusion,
            max_batch_size,
            on_member_error,
            gate=gate,
            max_waiting=max_waiting,
            step_timeout=step_timeout,
        )
        before_computing()
        with options.steps("Preparing", progress=progress, described=False) as steps:
            options.check_members(members, steps)
            engine = options.build(members, steps)
        return cls(engine)

    @classmethod
    def from_models(
        cls,
        models: Sequence[tuple[Any, Any]] | Mapping[str, tuple[Any, Any]],
        *,
        prompts: Sequence[FormOption | None] | Mapping[str, FormOption] | None = None,
        max_context_window: int | None = None,
        **options: Any,
    ) -> Ensemble:
        """Creates an ensemble of models and tokenizers of `transformers` that are in memory already.

        While it is open, a model must not be used elsewhere. Its weights are shared, not copied; its attention and
        output layer may be replaced by equal ones until it is closed. After its weights have changed, call `forget`.

        Args:
            models: Pairs of a model, in evaluation mode, and its tokenizer, in order or by the names of the members.
            prompts: As for `load`.
            max_context_window: As for `load`.
            options: Those of `from_members`.

        Raises:
            ConfigurationError: If a model cannot be a member, and as from `from_members`.
            TokenizerError: If a tokenizer cannot be used.
            DeepenError: As from `from_members`.
        """
        members = given_members(models, prompts, max_context_window)
        with closed_on_error(members):
            ensemble = cls.from_members(members, **options)
        ensemble._loaded = members  # noqa: SLF001 (of this class)
        return ensemble

    @classmethod
    def demo(cls, members: Sequence[str] = MEMBERS, **options: Any) -> Ensemble:
        """Loads the embedded demo: two small models that each know a part of an invented world. No network, no bars.

        Args:
            members: By their names: "atlas-gpt2" and "almanac-llama", which are the default, and "ferry-t5", which
                translates an invented language. Beside it the others are shown no prompt, since they cannot read that.
            options: Any option of `Ensemble.load` except `models`.

        Raises:
            ConfigurationError: If the demo has no such member, and as from `Ensemble.load`.
        """
        others = [name for name in members if name != TRANSLATOR]
        forms = dict.fromkeys(others, unread) if len(others) < len(members) else None
        given = {"progress": False, "device": "cpu", "prompts": forms, **options}
        return cls.load(member_paths(members), **given)

    def alone(self, member: int | str) -> Ensemble:
        """Returns a member as an ensemble of its own, without loading it again.

        Its requests are decoded in the same batch, and it ends when this ensemble is closed.

        Args:
            member: Index or name of the member.

        Raises:
            ConfigurationError: If there is no such member.
        """
        return _Alone(self._opened, main_index(member, [m.name for m in self._opened().members], option="member"))

    @property
    def info(self) -> EnsembleInfo:
        """Facts about the members, and how well they fit together."""
        return engine_info(self._opened(), self._warnings)

    def _opened(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise closed_error()
        return engine

    def _serving(self) -> tuple[Worker, Decoder]:
        engine = self._opened()
        return engine.worker, engine.decoder

    def warm_up(self) -> None:
        """Answers briefly in every way, so that the first request does not wait for what is only done once.

        That is what the libraries do at a model's first steps, what is found out about chat templates when they are
        first used, and, with the extra `structured`, main's vocabulary in the form that constraints need.

        Raises:
            ClosedError: If the ensemble was closed.
            MemberError: If a member fails.
        """
        brief = SamplingParams(max_new_tokens=2, ignore_eos=True)
        self.generate("Hello", brief)
        if can_constrain():
            self.generate("Hello", max_new_tokens=2, regex="(?s:.+)")
        if self.has_chat_template:
            self.thoughts()
            with suppress(ChatTemplateError):  # a template may want more than a question
                self.generate([{"role": "user", "content": "Hello"}], brief)

    def forget(self) -> None:
        """Drops what the members keep of earlier prompts and answers, and gives that memory back.

        The next prompt is read from its start, whatever it has in common with the last one, and by the weights that the
        models have then. Answers that are being written go on: their texts are read again.

        Raises:
            ClosedError: If the ensemble was closed.
        """
        worker, decoder = self._serving()
        worker.call(decoder.forget).result()

    def close(self) -> None:
        """Releases the models. Running requests end with `ClosedError`.

        A step under way is waited for, for at most 10 seconds: a member that hangs is left behind, and holds its memory
        until it returns.
        """
        self._engine = None
        self._worker.stop()
        loaded, self._loaded = self._loaded, ()
        for member in loaded:
            close(member)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Alone(Ensemble):
    """A member of an open ensemble by itself.

    Args:
        whole: Returns the engine of the ensemble while that is open, and keeps it.
        number: The member's number.
    """

    def __init__(self, whole: Callable[[], Engine], number: int) -> None:
        self._whole: Callable[[], Engine] | None = whole
        self._number = number
        self._warnings = []

    def _opened(self) -> Engine:
        whole = self._whole
        if whole is None:
            raise closed_error()
        return whole().members_alone[self._number]

    def close(self) -> None:
        """Lets the ensemble go, which stays open."""
        self._whole = None
