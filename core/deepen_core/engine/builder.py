"""Builds an engine from options and members; everything cheap is checked first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from deepen_core.chat.prompt_encoder import no_template
from deepen_core.config import MemberErrorPolicy, ServingConfig, StrategyOptions, resolve_fusion
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.engine import Engine, counted_members
from deepen_core.engine.timed_member import timed_members
from deepen_core.engine.worker import Worker
from deepen_core.errors import ConfigurationError, ModelFilesError
from deepen_core.fusion import strategy_of
from deepen_core.fusion.base import Fusion, MemberFacts
from deepen_core.fusion.gates import Gate, gate_of
from deepen_core.fusion.policies import WeightPolicy, policy_named
from deepen_core.fusion.weights import normalised_weights, policy_and_shares
from deepen_core.members.base import Member, asks_by_token
from deepen_core.members.collector import collector_paused
from deepen_core.members.context_budget import Budgeted, ContextBudget
from deepen_core.members.loading import DescribedMember, main_index, may_have_embeddings, try_member
from deepen_core.progress import Steps

_STEPS = 2  # for all members together: comparing vocabularies, and preparing the fusion


@dataclass(frozen=True)
class EngineOptions:
    """The options of an engine, checked before anything is loaded.

    Attributes:
        names: The members' names.
        main: The number of the member whose vocabulary is used.
        policy: Weighs the members.
        by_default: Whether no policy was asked for.
        config: The options of the strategy.
        strategy: The strategy's class.
        serving: How requests are served.
        gate: Decides where the members other than main are asked; None for everywhere.
    """

    names: list[str]
    main: int
    policy: WeightPolicy
    by_default: bool
    config: StrategyOptions
    strategy: type[Fusion]
    serving: ServingConfig
    gate: Gate | None

    @classmethod
    def checked(
        cls,
        names: list[str],
        main: int | str,
        weights: Sequence[float] | str | WeightPolicy | None,
        fusion: str | StrategyOptions | Mapping[str, Any],
        max_batch_size: int,
        on_member_error: MemberErrorPolicy,
        models: Sequence[str] = (),
        shares: Sequence[float] | None = None,
        max_context_window: int | None = None,
        gate: float | Gate | None = None,
        max_waiting: int | None = None,
        step_timeout: float | None = None,
    ) -> Self:
        """Checks the options in the form that `Ensemble.load` takes.

        Args:
            names: The members' names.
            main: Index or name of the main member, or what it was loaded from.
            weights: One number per member, or a policy or its name. If None, "context" where the strategy can compare
                several members, or "adaptive" if llama.cpp serves one; else "static".
            fusion: A name, options, or their fields.
            max_batch_size: The maximum number of requests decoded together.
            on_member_error: What a failing member does to a request.
            models: What each member was loaded from, if known.
            shares: The members' shares, which policies start from; equal if None.
            max_context_window: Caps every member's window.
            gate: A threshold of main's top probability, or a rule.
            max_waiting: The maximum number of requests that wait.
            step_timeout: The maximum number of seconds for a member's step.

        Raises:
            ConfigurationError: For options that contradict each other or the members.
        """
        place = main_index(main, names, models)
        config = resolve_fusion(fusion)
        strategy = strategy_of(config)
        policy = _policy(weights, [1.0] * len(names) if shares is None else shares, names, place, strategy)
        if policy.compares and not strategy.compares_tokens:
            raise ConfigurationError(
                f"weights={weights!r} needs a strategy that compares members token by token, and fusion="
                f"{config.label!r} does not: use 'deepen', 'product' or 'bytes', or give one number per member."
            )
        serving = ServingConfig.parse(
            {
                "max_batch_size": max_batch_size,
                "max_context_window": max_context_window,
                "on_member_error": on_member_error,
                "gate": None if isinstance(gate, Gate) else gate,
                "max_waiting": max_waiting,
                "step_timeout": step_timeout,
            },
            ConfigurationError,
        )
        rule = gate if isinstance(gate, Gate) else gate_of(serving.gate)
        return cls(names, place, policy, weights is None, config, strategy, serving, rule)

    def steps(self, work: str, *, progress: bool, described: bool) -> Steps:
        """Returns the steps of loading: two per described member, one per member that is tried, and those of fusion.

        Args:
            work: Name of the work.
            progress: Show a progress bar.
            described: Whether members are described and loaded, rather than given.
        """
        of_member = self.strategy.steps_of_member + 2 * described
        count = _STEPS + of_member * len(self.names) + len(counted_members(self.main, self.policy.describe()))
        return Steps(work, " and ".join(self.names), count, shown=progress)

    def check_members(self, members: Sequence[DescribedMember | Member], steps: Steps) -> None:
        """Makes the strategy reject members that it cannot fuse, before anything heavy is loaded.

        Raises:
            ConfigurationError: If there is not enough memory for what the options ask for.
            NoCommonTokensError: If the members share no token, and the strategy needs some.
        """
        with steps.doing("comparing vocabularies"):
            facts = [MemberFacts(m.name, m.tokenizer.vocabulary, m.device, may_have_embeddings(m)) for m in members]
            self.strategy.check(facts, self.config)

    def budget(self, members: Sequence[Budgeted]) -> ContextBudget:
        """Returns how much of a prompt fits all members that take part."""
        counted = counted_members(self.main, self.policy.describe())
        return ContextBudget([members[number] for number in counted], counted.index(self.main))

    def check_templates(self, members: Sequence[DescribedMember | Member]) -> None:
        """Rejects members that cannot read a conversation, among those that take part.

        Raises:
            ChatTemplateError: If such a member has no chat template.
        """
        counted = [members[number] for number in counted_members(self.main, self.policy.describe())]
        if without := [m.name for m in counted if not m.tokenizer.reader.has_chat_template]:
            raise no_template(without)

    def build(self, members: Sequence[Member], steps: Steps) -> Engine:
        """Builds the engine from loaded members.

        Raises:
            ConfigurationError: If a member lacks what the strategy needs, or memory to run.
            MemberError: If a member fails when it is tried.
            ModelFilesError: If a tokenizer has tokens without logits in its model.
        """
        weights = self.policy.describe()
        for member in members:
            _check_vocabulary(member)
        for number in counted_members(self.main, weights):
            with steps.doing(f"{self.names[number]}: probing how it batches sequences"):
                try_member(members[number])
        with collector_paused:
            fusion = self.strategy.build(members, self.main, self.config, steps)
        policy = self._policy_for(members)
        if self.serving.step_timeout is not None:
            members = timed_members(members, self.serving.step_timeout)
        decoder = Decoder(
            members, self.main, policy, fusion, self.config.label, self.serving.on_member_error, self.gate
        )
        worker = Worker(decoder, self.serving.max_batch_size, self.serving.max_waiting)
        built = fusion, self.config.label, self.config
        return Engine(list(members), self.main, weights, policy.label, self.gate, *built, decoder, worker)

    def _policy_for(self, members: Sequence[Member]) -> WeightPolicy:
        """Returns the policy, or another one if none was asked for and reading prompts takes too long."""
        if not self.by_default:
            return self.policy
        shares = self.policy.describe()
        by_token = [asks_by_token(members[number]) for number in counted_members(self.main, shares)]
        return _default_policy(self.strategy, self.main, shares, asks_by_token=any(by_token))


def _policy(
    weights: Sequence[float] | str | WeightPolicy | None,
    shares: Sequence[float],
    names: Sequence[str],
    main: int,
    strategy: type[Fusion],
) -> WeightPolicy:
    if isinstance(weights, WeightPolicy):
        return weights
    if weights is None:
        return _default_policy(strategy, main, normalised_weights(shares, names), asks_by_token=False)
    name, given = policy_and_shares(weights)
    if isinstance(weights, str):
        return policy_named(name, normalised_weights(shares if given is None else given, names))
    return policy_named(name, normalised_weights(weights, names))


def _default_policy(strategy: type[Fusion], main: int, shares: Sequence[float], *, asks_by_token: bool) -> WeightPolicy:
    several = len(counted_members(main, shares)) > 1
    return policy_named(strategy.default_policy(asks_by_token=asks_by_token) if several else "static", shares)


def _check_vocabulary(member: Member) -> None:
    """Rejects a tokenizer with plain tokens that the model has no logits for."""
    tokens, size = member.tokenizer.vocabulary.tokens, member.vocabulary_size
    beyond = [i for i in tokens.values() if i >= size]
    if beyond:
        raise ModelFilesError(
            f"The tokenizer of member {member.name!r} has {len(beyond)} tokens with ids up to {max(beyond)}, but the "
            f"model has {size} embeddings: save it again after "
            f"model.resize_token_embeddings({max(beyond) + 1})."
        )
