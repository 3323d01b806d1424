"""A whole evaluation: every main member, weights fitted on some tasks, and everything compared on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from deepen_core.chat.prompt_encoder import no_template
from deepen_core.config import PRESETS
from deepen_core.engine.engine import Engine
from deepen_core.engine.scoring import TextReader
from deepen_core.errors import ConfigurationError, EvaluationError
from deepen_core.evaluation.cost import Cost, cost
from deepen_core.evaluation.evaluation import VOTE, Evaluation, Rights, alone_label, rights, rights_of_members
from deepen_core.evaluation.fitted_weights import By, FittedPolicy, FittedWeights
from deepen_core.evaluation.fitting import answered_alone, compared, fitted
from deepen_core.evaluation.generation import Answer
from deepen_core.evaluation.items import Task, right_answers
from deepen_core.evaluation.judged_task import JudgedTask
from deepen_core.evaluation.likelihood import ChoiceScores, shares_asked
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.settings import Setting, Settings, default_weights, equal
from deepen_core.evaluation.summary import Summary, summarised
from deepen_core.evaluation.votes import Votes, Way
from deepen_core.fusion import strategy_of
from deepen_core.fusion.policies import policy_class
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
    evaluation = Evaluation(
        folder, _facts(engine), chat=plan.chat, shots=plan.shots, together=plan.together, progress=progress
    )
    found = _Found({}, {}, {}, {}, [], {})
    votes = Votes(evaluation, plan.votes, plan.vote_temperature)
    everyone = _everyone(engine, plan.fusions[0])
    _answer_alone(evaluation, everyone, plan, found, votes)
    readers = {main: TextReader(engine, main, range(len(engine.members))) for main in plan.mains}
    for main in plan.mains:
        _compare(evaluation, everyone, readers[main], plan, found, votes)
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
    everyone: Sequence[_Alone],
    reader: TextReader,
    plan: Plan,
    found: _Found,
    votes: Votes,
) -> None:
    """Compares all settings with one main member on all tasks."""
    names = [member.name for member in reader.members]
    count, main = len(names), names[reader.main]
    fits = _fits(evaluation, everyone, reader, plan, plan.fitted_policies)
    settings = _settings(plan, fits, count)
    built = Settings(reader.members, reader.main, list(settings.values()))
    every: list[ChoiceScores] = []
    for task in plan.tasks:
        if task.scored:
            scores = evaluation.scores(reader, task, list(settings.values()))
            every += scores
            alone, together = rights_of_members(task, scores), rights(task, scores, settings)
        else:
            alone, together = {}, _answered(evaluation, reader, task, settings, built, found)
            for fusion in plan.fusions:
                label = _default_label(fusion)
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


def _answer_alone(evaluation: Evaluation, everyone: Sequence[_Alone], plan: Plan, found: _Found, votes: Votes) -> None:
    """Lets each member answer the open questions alone."""
    for alone in everyone:
        for task in [task for task in plan.tasks if task.answered]:
            answers = alone.answers(evaluation, task)
            found.alone.setdefault(alone.label, {})[task.name] = [float(answer.right) for answer in answers]
            found.answers.setdefault((alone.label, alone.name), []).extend(answers)
            votes.add((alone.label, ""), alone.reader, task, alone.setting, alone.built, alone.label)


class _Alone:
    """Lets a member answer alone.

    Args:
        engine: Has the members.
        number: Of the member.
        fusion: The name of any strategy: nothing is fused.

    Attributes:
        name: The member's name.
        label: Its label in tables.
        reader: Has it and runs it.
        setting: Its weight is one.
        built: Has the setting's strategy.
    """

    def __init__(self, engine: Engine, number: int, fusion: str) -> None:
        self.reader = TextReader(engine, number, [number])
        self.setting = Setting(fusion, tuple(float(n == number) for n in range(len(engine.members))))
        self.built = Settings(engine.members, number, [self.setting])
        self.name = engine.members[number].name
        self.label = alone_label(self.name)

    def answers(self, evaluation: Evaluation, task: Task) -> list[Answer]:
        """Returns its answers to the items of a task."""
        return evaluation.answers(self.reader, task, self.setting, self.built, self.label)


def _everyone(engine: Engine, fusion: str) -> list[_Alone]:
    return [_Alone(engine, number, fusion) for number in range(len(engine.members))]


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
        progress: Show a bar.

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
    name, named = engine.fusion_name, engine.fusion_name in PRESETS
    if not named and folder is not None:
        raise ConfigurationError(
            f"This ensemble has options of its own ({name}), which scores in a folder could not be told apart by: give "
            "no folder."
        )
    plan = Plan((), tasks, fusions=(name,), by=by)
    plan.check_fit()
    built = {} if named else {name: engine.fusion}
    evaluation = Evaluation(folder, _facts(engine), chat=False, built=built, progress=progress)
    reader = TextReader(engine, counted=range(len(engine.members)))
    [found] = _fits(evaluation, _everyone(engine, "bytes"), reader, plan, [policy])
    return found


def _facts(engine: Engine) -> dict[str, list[str]]:
    """Returns what must be the same for all scores in a folder."""
    return {
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


def _fits(
    evaluation: Evaluation,
    everyone: Sequence[_Alone],
    reader: TextReader,
    plan: Plan,
    policies: Sequence[FittedPolicy],
) -> list[FittedWeights]:
    """Fits the weights of each strategy for some policies, all on the same readings."""
    if not plan.fitted_on:
        return []
    names = [member.name for member in reader.members]
    settings = [setting for fusion in plan.fusions for setting in compared(fusion, len(names), policies)]
    shots = [item for task in plan.shots for item in task.open]
    tasks = {right_answers(task, shots, chat=plan.chat): task for task in plan.fitted_on}
    simple = [setting for setting in settings if setting.weights == equal(len(names))]
    labels = [names[reader.main], *(setting.label for setting in simple)]

    def judge(task: Task) -> JudgedTask:
        own = tasks[task]
        answers = [alone.answers(evaluation, own) for alone in everyone]
        rights = torch.tensor([[float(answer.right) for answer in of_member] for of_member in answers]).T
        following = any(policy != "static" for policy in policies)
        prompts = torch.tensor(evaluation.prompt_likelihoods(reader, own)) if following else None
        return JudgedTask(own.name, rights, prompts)

    def read(task: Task) -> Sequence[ChoiceScores]:
        if plan.by == "likelihood":
            return evaluation.scores(reader, task, settings)
        if task.in_steps:  # which are long, and hardly ever written: a few settings tell whether to read them in all
            found = evaluation.scores(reader, task, simple, greedy=True)
            if answered_alone(task, found, labels, judge) is not None:
                return []
        return evaluation.scores(reader, task, settings, greedy=True)

    scored = [(task, read(task)) for task in tasks]
    given = names, names[reader.main], plan.by, judge
    return [fitted(scored, fusion, *given, policy) for policy in policies for fusion in plan.fusions]


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


def _default_label(fusion: str) -> str:
    policy = strategy_of(PRESETS[fusion]).default_policy()
    return fusion if policy == "static" else f"{fusion}, {policy}"


def _settings(plan: Plan, fits: Sequence[FittedWeights], members: int) -> dict[str, Setting]:
    """Returns all settings by their labels in the table."""
    found = {}
    for fusion in plan.fusions:
        found[fusion] = Setting(fusion, equal(members))
        for fit in fits:
            if fit.fusion == fusion and (fit.policy != "static" or max(fit.weights) < 1):
                found[_fitted_label(fit)] = Setting(fusion, _weights(fit))
        default, by_default = _default_label(fusion), default_weights(fusion, members)
        found[default] = Setting(fusion, by_default)
        found |= {f"{default}, gate {gate:g}": Setting(fusion, by_default, gate) for gate in plan.gates}
        compares = strategy_of(PRESETS[fusion]).compares_tokens
        usable = [policy for policy in plan.policies if compares or not policy_class(policy).compares]
        found |= {f"{fusion}, {policy}": Setting(fusion, policy) for policy in usable}
    return found
