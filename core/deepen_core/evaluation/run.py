"""A whole evaluation: every main member, weights fitted on some tasks, and everything compared on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from deepen_core.chat.prompt_encoder import no_template
from deepen_core.config import PRESETS
from deepen_core.config.weights import POLICIES
from deepen_core.engine.engine import Engine
from deepen_core.engine.scoring import TextReader
from deepen_core.errors import ConfigurationError, EvaluationError
from deepen_core.evaluation.cost import Cost, cost
from deepen_core.evaluation.evaluation import VOTE, Evaluation, Rights, alone_label, rights, rights_of_members
from deepen_core.evaluation.fitting import By, FittedWeights, candidates, fitted
from deepen_core.evaluation.generation import Answer
from deepen_core.evaluation.items import CodeItem, OpenItem, Task, TranslationItem, right_answers
from deepen_core.evaluation.ledger import digest
from deepen_core.evaluation.likelihood import ChoiceScores, shares_asked
from deepen_core.evaluation.settings import Setting, Settings, default_weights, equal
from deepen_core.evaluation.summary import Summary, summarised
from deepen_core.evaluation.votes import Votes, Way
from deepen_core.fusion import strategy_of
from deepen_core.fusion.policies import policy_class
from deepen_core.members.base import Member, has_embeddings
from deepen_core.voting.risk import chrf
from deepen_core.voting.sampling import TEMPERATURE


@dataclass(frozen=True)
class Plan:
    """What to evaluate.

    Attributes:
        tasks: Compared on these: questions with choices, open questions and exercises.
        fitted_on: Weights are fitted on these; none for no fitted weights.
        fusions: Names of strategies.
        policies: Names of policies that weigh members, beside equal weights and those of each strategy by default.
        gates: Thresholds of main's top probability from which on main decides alone, at default weights.
        mains: Numbers of the members that are main in turn.
        by: What fitted weights are best at.
        chat: Ask in conversations rather than in plain text.
        shots: All of their items are shown with their answers before each open question of their kind.
        together: Most items that are answered at once.
        votes: Open questions are also answered by a majority of so many sampled answers, by each member alone and each
            strategy at its default weights; 0 for none.
        vote_temperature: At which these are sampled.
    """

    tasks: Sequence[Task]
    fitted_on: Sequence[Task] = ()
    fusions: Sequence[str] = ("deepen", "product", "union")
    policies: Sequence[str] = ("adaptive", "confidence", "consistency")
    gates: Sequence[float] = (0.5, 0.9)
    mains: Sequence[int] = (0,)
    by: By = "score"
    chat: bool = False
    shots: Sequence[Task] = ()
    together: int = 16
    votes: int = 0
    vote_temperature: float = TEMPERATURE

    def check(self) -> None:
        """Rejects what cannot be evaluated.

        Raises:
            EvaluationError: If there is nothing to compare or to vote on, a task has no items, a name is unknown, two
                tasks have one name, a task cannot be answered right or wrong, weights cannot be fitted on a task, or an
                item is both fitted on or shown and compared on.
            SamplingError: If translations cannot be judged, since sacrebleu is not installed.
        """
        if not self.tasks or not self.fusions or not self.mains:
            raise EvaluationError(
                "There is nothing to compare: give at least one task, one strategy and one main member."
            )
        for kind, given, known in (("strategy", self.fusions, PRESETS), ("policy", self.policies, POLICIES)):
            if unknown := [name for name in given if name not in known]:
                raise EvaluationError(f"There is no {kind} {unknown[0]!r}: choose among {', '.join(known)}.")
        if empty := [task.name for task in (*self.tasks, *self.fitted_on) if not task.items]:
            raise EvaluationError(f"{empty[0]} has no items.")
        names = [task.name for task in self.tasks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise EvaluationError(f"There are two tasks called {twice[0]}: give their files different names.")
        self._check_judges()
        self.check_fit()
        self._check_votes()
        for task in self.shots:
            if not all(isinstance(item, OpenItem) for item in task.items):
                raise EvaluationError(f"{task.name} has no open questions: only these are shown with their answers.")
        seen = {digest(item) for task in (*self.fitted_on, *self.shots) for item in task.items}
        both = sum(digest(item) in seen for task in self.tasks for item in task.items)
        if both:
            raise EvaluationError(
                f"{both} of the items are fitted on or shown too: results would look better than they are. Give other "
                "items."
            )

    def _check_judges(self) -> None:
        for task in self.tasks:
            if not task.is_right_or_wrong:
                raise EvaluationError(f"{task.name} has texts to fit on: they cannot be answered right or wrong.")
            if any(isinstance(item, TranslationItem) for item in task.items):
                chrf()  # says what is missing

    def _check_votes(self) -> None:
        if self.votes < 0 or (self.votes and not 0 < self.vote_temperature <= 100):
            raise EvaluationError(
                f"{self.votes} votes at temperature {self.vote_temperature:g}: give a number from 0, and a temperature "
                "above 0 and at most 100, since all answers are equal at 0."
            )
        if self.votes and not any(task.open for task in self.tasks):
            raise EvaluationError(f"There is nothing for {self.votes} votes: no task has open questions.")

    def check_fit(self) -> None:
        """Rejects tasks that weights cannot be fitted on.

        Raises:
            EvaluationError: If a task has exercises, or texts where right answers count.
        """
        if self.by not in get_args(By):
            raise EvaluationError(f"Weights are fitted by {' or '.join(get_args(By))}, not by {self.by!r}.")
        for task in self.fitted_on:
            if any(isinstance(item, CodeItem) for item in task.items):
                raise EvaluationError(
                    f"{task.name} has exercises: weights are fitted on choices, open questions, translations or texts."
                )
            if self.by == "score" and not task.is_right_or_wrong:
                raise EvaluationError(f"{task.name} has texts without choices: fit by likelihood.")


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
    _answer_alone(evaluation, engine, plan, found, votes)
    for main in plan.mains:
        _compare(evaluation, TextReader(engine, main, range(len(engine.members))), plan, found, votes)
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


def _compare(evaluation: Evaluation, reader: TextReader, plan: Plan, found: _Found, votes: Votes) -> None:
    """Compares all settings with one main member on all tasks."""
    count, main = len(reader.members), reader.members[reader.main].name
    fits = _fits(evaluation, reader, plan)
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
            if max(fit.weights) == 1:  # main alone, which has answered already
                together[_fitted_label(fit)] = found.alone[alone_label(main)][task.name]
        for label, right in together.items():
            found.together.setdefault((label, main), {})[task.name] = right
    found.options |= {(label, main): f"{settings[label].options} --main {main}" for label in settings}
    found.weights += fits
    found.asked[main] = shares_asked(every, plan.gates)


def _answer_alone(evaluation: Evaluation, engine: Engine, plan: Plan, found: _Found, votes: Votes) -> None:
    """Lets each member answer the open questions alone."""
    tasks = [task for task in plan.tasks if task.answered]
    for number, member in enumerate(engine.members if tasks else ()):
        reader = TextReader(engine, number, [number])
        alone = Setting(plan.fusions[0], tuple(float(n == number) for n in range(len(engine.members))))
        built, label = Settings(engine.members, number, [alone]), alone_label(member.name)
        for task in tasks:
            answers = evaluation.answers(reader, task, alone, built, label)
            found.alone.setdefault(label, {})[task.name] = [float(answer.right) for answer in answers]
            found.answers.setdefault((label, member.name), []).extend(answers)
            votes.add((label, ""), reader, task, alone, built, label)


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


def fit(engine: Engine, tasks: Sequence[Task], folder: Path | None, *, by: By, progress: bool) -> FittedWeights:
    """Fits the weights of an open ensemble with its main member and strategy, see `Ensemble.fit_weights`.

    Args:
        engine: The engine.
        tasks: The examples.
        folder: As for `run`.
        by: What to be best at.
        progress: Show a bar.

    Raises:
        ConfigurationError: If the ensemble's strategy has no name.
        EvaluationError: If a task or the folder cannot be used.
        MemberError: If a member fails.
    """
    if engine.fusion_name not in PRESETS:
        raise ConfigurationError(
            f"Weights can be fitted for the strategies {', '.join(PRESETS)}, and this ensemble has options of its own "
            f"({engine.fusion_name})."
        )
    if not tasks:
        raise EvaluationError("There is nothing to fit on: give at least one file.")
    plan = Plan((), tasks, fusions=(engine.fusion_name,), by=by)
    plan.check_fit()
    evaluation = Evaluation(folder, _facts(engine), chat=False, progress=progress)
    [found] = _fits(evaluation, TextReader(engine, counted=range(len(engine.members))), plan)
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


def _fits(evaluation: Evaluation, reader: TextReader, plan: Plan) -> list[FittedWeights]:
    if not plan.fitted_on:
        return []
    names = [member.name for member in reader.members]
    settings = [setting for fusion in plan.fusions for setting in candidates(fusion, len(names))]
    shots = [item for task in plan.shots for item in task.open]
    tasks = [right_answers(task, shots, chat=plan.chat) for task in plan.fitted_on]
    scored = [(task, evaluation.scores(reader, task, settings, greedy=plan.by == "score")) for task in tasks]
    return [fitted(scored, fusion, names, names[reader.main], plan.by) for fusion in plan.fusions]


def _fitted_label(fit: FittedWeights) -> str:
    return f"{fit.fusion}, fitted {' '.join(f'{w:.2g}' for w in fit.weights)}"


def _default_label(fusion: str) -> str:
    policy = strategy_of(PRESETS[fusion]).default_policy()
    return fusion if policy == "static" else f"{fusion}, {policy}"


def _settings(plan: Plan, fits: Sequence[FittedWeights], members: int) -> dict[str, Setting]:
    """Returns all settings by their labels in the table."""
    found = {}
    for fusion in plan.fusions:
        found[fusion] = Setting(fusion, equal(members))
        for fit in fits:
            if fit.fusion == fusion and max(fit.weights) < 1:
                found[_fitted_label(fit)] = Setting(fusion, tuple(fit.weights))
        default, weights = _default_label(fusion), default_weights(fusion, members)
        found[default] = Setting(fusion, weights)
        found |= {f"{default}, gate {gate:g}": Setting(fusion, weights, gate) for gate in plan.gates}
        compares = strategy_of(PRESETS[fusion]).compares_tokens
        usable = [policy for policy in plan.policies if compares or not policy_class(policy).compares]
        found |= {f"{fusion}, {policy}": Setting(fusion, policy) for policy in usable}
    return found
