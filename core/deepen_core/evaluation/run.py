"""A whole evaluation: every main member, weights fitted on some tasks, and everything compared on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from deepen_core.chat.prompt_encoder import no_template
from deepen_core.config import PRESETS
from deepen_core.engine.engine import Engine
from deepen_core.engine.scoring import TextReader
from deepen_core.errors import ConfigurationError, EvaluationError
from deepen_core.evaluation.cost import Cost, cost
from deepen_core.evaluation.evaluation import VOTE, Evaluation, Rights, alone_label, rights, rights_of_members
from deepen_core.evaluation.fits import Fits
from deepen_core.evaluation.fitted_weights import By, FittedPolicy, FittedWeights
from deepen_core.evaluation.generation import Answer
from deepen_core.evaluation.items import Task
from deepen_core.evaluation.likelihood import ChoiceScores, shares_asked
from deepen_core.evaluation.member_alone import MemberAlone, everyone
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.settings import Setting, Settings, default_weights, equal
from deepen_core.evaluation.strategies import Strategies
from deepen_core.evaluation.summary import Summary, summarised
from deepen_core.evaluation.votes import Votes, Way
from deepen_core.fusion import strategy_of
from deepen_core.fusion.policies import policy_class
from deepen_core.fusion.prompts import WEIGHTS_VERSION
from deepen_core.members.base import Member, has_embeddings


@dataclass(frozen=True)
class Outcome:
    """What an evaluation has found.

    Attributes:
        summary: The table.
        asked: For each main member and each gate by its threshold, the share of steps in which others are asked.
        weights: The fitted weights, for each main member and strategy.
        costs: What the answers to open questions have cost, for each way to answer; empty without such questions.
    """

    summary: Summary
    asked: dict[str, dict[str, float]]
    weights: list[FittedWeights]
    costs: list[Cost]


def run(engine: Engine, plan: Plan, folder: Path | None, *, progress: bool) -> Outcome:
    """Evaluates an ensemble; other requests continue to decode meanwhile.

    Args:
        engine: The engine, of which only the members count.
        plan: What to evaluate.
        folder: Keeps what is measured: an evaluation in the same folder goes on from there. None keeps nothing.
        progress: Show bars.

    Raises:
        ChatTemplateError: If a member cannot read a conversation, and the plan asks for some.
        ConfigurationError: If a strategy cannot fuse these members.
        EvaluationError: If the plan or the folder cannot be used.
        MemberError: If a member fails.
        SamplingError: As from `Plan.check`.
    """
    plan.check()
    if beyond := [main for main in plan.mains if not 0 <= main < len(engine.members)]:
        raise EvaluationError(f"There is no member {beyond[0]} to be main: there are {len(engine.members)}, from 0.")
    if plan.chat and (without := [m.name for m in engine.members if not m.tokenizer.reader.has_chat_template]):
        raise no_template(without)
    strategies = Strategies(engine.members)
    evaluation = Evaluation(
        folder,
        _facts(engine),
        chat=plan.chat,
        shots=plan.shots,
        together=plan.together,
        strategies=strategies,
        progress=progress,
    )
    found = _Found({}, {}, {}, {}, [], {})
    votes = Votes(evaluation, plan.votes, plan.vote_temperature)
    members = everyone(engine)
    _answer_alone(evaluation, members, plan, found, votes)
    readers = {main: TextReader(engine, main, range(len(engine.members))) for main in plan.mains}
    for main in plan.mains:
        _compare(evaluation, members, readers[main], plan, found, votes, strategies)
    vote = {**found.alone.pop(VOTE, {}), **votes.of_members()}
    every = vote.keys() == {task.name for task in plan.tasks}
    ways = {(VOTE, ""): vote} | found.together if every else found.together
    voted = votes.rows({(label, ""): tasks for label, tasks in found.alone.items()} | found.together)
    costs = [cost(label, main, answers) for (label, main), answers in found.answers.items()]
    options = found.options | votes.options(found.options)
    return Outcome(summarised(found.alone, {**ways, **voted}, options), found.asked, found.weights, costs)


@dataclass
class _Found:
    """What is known so far: each way's items of each task, the options that ask for it; as in `Outcome`; answers."""

    alone: dict[str, dict[str, list[float]]]
    together: dict[Way, dict[str, list[float]]]
    options: dict[Way, str]
    asked: dict[str, dict[str, float]]
    weights: list[FittedWeights]
    answers: dict[tuple[str, str], list[Answer]]  # by label and main member, which is the member itself where alone


def _compare(
    evaluation: Evaluation,
    members: Sequence[MemberAlone],
    reader: TextReader,
    plan: Plan,
    found: _Found,
    votes: Votes,
    strategies: Strategies,
) -> None:
    """Compares all settings with one main member on all tasks."""
    main = reader.members[reader.main].name
    fits = Fits(evaluation, members, reader, plan, plan.fitted_policies).found()
    settings = _settings(plan, fits, reader.members)
    built = Settings(reader.members, reader.main, list(settings.values()), strategies)
    every: list[ChoiceScores] = []
    for task in plan.tasks:
        if task.scored:
            scores = evaluation.scores(reader, task, list(settings.values()))
            every += scores
            alone, together = rights_of_members(task, scores), rights(task, scores, settings)
        else:
            alone, together = {}, _answered(evaluation, reader, task, settings, built, found)
            for fusion in plan.fusions:
                label = _default_label(fusion, reader.members)
                setting = settings[label]
                votes.add((label, main), reader, task, setting, built, _with_main(setting.label, reader))
        for label, right in alone.items():
            found.alone.setdefault(label, {})[task.name] = right
        for fit in fits:
            if fit.policy == "static" and max(fit.weights) == 1:  # main alone, which has answered already
                together[_fitted_label(fit)] = found.alone[alone_label(main)][task.name]
        for label, right in together.items():
            found.together.setdefault((label, main), {})[task.name] = right
    found.options |= {(label, main): f"{settings[label].options} --main {main}" for label in settings}
    found.weights += fits
    found.asked[main] = shares_asked(every, plan.gates)


def _answer_alone(
    evaluation: Evaluation, members: Sequence[MemberAlone], plan: Plan, found: _Found, votes: Votes
) -> None:
    """Lets each member answer the open questions alone."""
    for alone in members:
        for task in [task for task in plan.tasks if task.answered]:
            answers = alone.answers(evaluation, task)
            found.alone.setdefault(alone.label, {})[task.name] = [float(answer.right) for answer in answers]
            found.answers.setdefault((alone.label, alone.name), []).extend(answers)
            votes.add((alone.label, ""), alone.reader, task, alone.setting, alone.built, alone.label)


def _answered(
    evaluation: Evaluation,
    reader: TextReader,
    task: Task,
    settings: Mapping[str, Setting],
    built: Settings,
    found: _Found,
) -> Rights:
    """Returns whether each open question is answered right in each setting."""
    main, rights_found = reader.members[reader.main].name, {}
    for label, setting in settings.items():
        answers = evaluation.answers(reader, task, setting, built, _with_main(setting.label, reader))
        found.answers.setdefault((label, main), []).extend(answers)
        rights_found[label] = [float(answer.right) for answer in answers]
    return rights_found


def _with_main(label: str, reader: TextReader) -> str:
    return f"{label}, main {reader.members[reader.main].name}"


def fit(
    engine: Engine, tasks: Sequence[Task], folder: Path | None, *, by: By, policy: FittedPolicy, progress: bool
) -> FittedWeights:
    """Fits the weights of an open ensemble with its main member and strategy, see `Ensemble.fit_weights`.

    Args:
        engine: The engine.
        tasks: The examples.
        folder: As for `run`.
        by: What to be best at.
        policy: "static", or "perplexity" for the shares that it starts from.
        progress: Show bars.

    Raises:
        ConfigurationError: If the strategy has options of its own, and there is a folder.
        EvaluationError: If a task, the folder or the policy cannot be used.
        MemberError: If a member fails.
        SamplingError: As from `Plan.check_fit`.
    """
    if not tasks:
        raise EvaluationError("There is nothing to fit on: give at least one file.")
    if policy not in get_args(FittedPolicy):
        raise EvaluationError(
            f"Weights are fitted for the policies {' and '.join(get_args(FittedPolicy))}, not {policy!r}."
        )
    name = engine.fusion_name
    if name not in PRESETS and folder is not None:
        raise ConfigurationError(
            f"This ensemble has options of its own ({name}), and a folder keeps scores by the strategy's name alone: "
            "give no folder."
        )
    plan = Plan((), tasks, fusions=(name,), by=by)
    plan.check_fit()
    strategies = Strategies(engine.members, {**PRESETS, name: engine.fusion_options})
    evaluation = Evaluation(folder, _facts(engine), chat=False, strategies=strategies, progress=progress)
    reader = TextReader(engine, counted=range(len(engine.members)))
    [found] = Fits(evaluation, everyone(engine), reader, plan, [policy]).found()
    return found


def _facts(engine: Engine) -> dict[str, Any]:
    """Returns what must be the same for all scores in a folder."""
    return {
        "version of the weights": WEIGHTS_VERSION,
        "members": [member.name for member in engine.members],
        "dtypes": [str(member.dtype).removeprefix("torch.") for member in engine.members],
        "models": [_fingerprint(member) for member in engine.members],
        "prompts": [member.tokenizer.reader.label for member in engine.members],
    }


def _fingerprint(member: Member) -> str:
    """Returns what tells a model from others of its name: its kind, its size and a sum of some of its weights."""
    described = member.describe()
    told = f"{described.architecture}, {described.parameters} parameters"
    if has_embeddings(member):
        told += f", {float(member.embeddings[:256].double().abs().sum()):.6g}"
    return told


def _fitted_label(fit: FittedWeights) -> str:
    weights = " ".join(f"{w:.2g}" for w in fit.weights)
    if fit.fitted_for == "static":
        return f"{fit.fusion}, fitted {weights}"
    return f"{fit.fusion}, fitted {fit.fitted_for}{', static' if fit.policy == 'static' else ''} {weights}"


def _weights(fit: FittedWeights) -> tuple[float, ...] | str:
    """Returns fitted weights as a setting has them; equal shares are what a policy starts from anyway."""
    weights = tuple(fit.weights)
    if fit.policy == "static":
        return weights
    return fit.policy if weights == equal(len(weights)) else str(fit.option)


def _default_label(fusion: str, members: Sequence[Member]) -> str:
    policy = default_weights(fusion, members)
    return f"{fusion}, {policy}" if isinstance(policy, str) else fusion


def _settings(plan: Plan, fits: Sequence[FittedWeights], members: Sequence[Member]) -> dict[str, Setting]:
    """Returns all settings by their labels in the table."""
    found = {}
    for fusion in plan.fusions:
        found[fusion] = Setting(fusion, equal(len(members)))
        for fit in fits:
            if fit.fusion == fusion and (fit.policy != "static" or max(fit.weights) < 1):
                found[_fitted_label(fit)] = Setting(fusion, _weights(fit))
        default, by_default = _default_label(fusion, members), default_weights(fusion, members)
        found[default] = Setting(fusion, by_default)
        found |= {f"{default}, gate {gate:g}": Setting(fusion, by_default, gate) for gate in plan.gates}
        compares = strategy_of(PRESETS[fusion]).compares_tokens
        usable = [policy for policy in plan.policies if compares or not policy_class(policy).compares]
        found |= {f"{fusion}, {policy}": Setting(fusion, policy) for policy in usable}
    return found
