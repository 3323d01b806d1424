"""Fits the weights of strategies and policies to the examples of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from deepen_core.engine.scoring import TextReader
from deepen_core.evaluation.evaluation import Evaluation
from deepen_core.evaluation.fitted_weights import FittedPolicy, FittedWeights
from deepen_core.evaluation.fitting import answered_alone, compared, fitted, simple
from deepen_core.evaluation.items import RightAnswer, right_answers
from deepen_core.evaluation.judged_task import JudgedTask
from deepen_core.evaluation.likelihood import ChoiceScores
from deepen_core.evaluation.member_alone import MemberAlone
from deepen_core.evaluation.plan import Plan
from deepen_core.fusion.prompts import PromptLikelihoods


class Fits:
    """Fits weights, all on the same readings of the examples.

    Args:
        evaluation: Measures, and keeps what is measured.
        everyone: The members, each alone.
        reader: Reads texts with the main member.
        plan: Has the examples, and the strategies to fit weights for.
        policies: What weights are fitted for.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        everyone: Sequence[MemberAlone],
        reader: TextReader,
        plan: Plan,
        policies: Sequence[FittedPolicy],
    ) -> None:
        self._evaluation = evaluation
        self._everyone = everyone
        self._reader = reader
        self._plan = plan
        self._policies = policies
        self._names = [member.name for member in reader.members]
        self._main = self._names[reader.main]
        self._settings = {fusion: compared(fusion, len(self._names), policies) for fusion in plan.fusions}
        shots = [item for task in plan.shots for item in task.open]
        self._tasks = [right_answers(task, shots, chat=plan.chat) for task in plan.fitted_on]

    def found(self) -> list[FittedWeights]:
        """Returns the weights for each policy and strategy; none without examples.

        Raises:
            MemberError: If a member fails.
        """
        if not self._tasks:
            return []
        scores = [self._read(number) for number in range(len(self._tasks))]
        return [self._fitted(fusion, policy, scores) for policy in self._policies for fusion in self._plan.fusions]

    def _fitted(
        self, fusion: str, policy: FittedPolicy, scores: Sequence[Mapping[str, Sequence[ChoiceScores]]]
    ) -> FittedWeights:
        scored = [(task, held[fusion]) for task, held in zip(self._tasks, scores, strict=True)]
        found = fitted(scored, fusion, self._names, self._main, self._plan.by, self._judge, policy)
        readable = [task for task in self._tasks if task.scored]
        if not readable or not found.tells_nothing:
            return found
        settings = self._settings[fusion]
        scored = [(task, self._evaluation.scores(self._reader, task, settings)) for task in readable]
        return fitted(scored, fusion, self._names, self._main, "likelihood", policy=policy)

    def _read(self, number: int) -> dict[str, Sequence[ChoiceScores]]:
        """Returns the scores of a task in all settings of each strategy; none if members' own answers tell more.

        A few settings tell whether right answers are written: in each one, all of the vocabulary is fused.
        """
        task, fusions, greedy = self._tasks[number], list(self._plan.fusions), self._plan.by == "score"
        if greedy and any(isinstance(item, RightAnswer) for item in task.scored):
            few = {fusion: simple(fusion, len(self._names)) for fusion in fusions}
            asked = [setting for settings in few.values() for setting in settings]
            found = self._evaluation.scores(self._reader, task, asked, greedy=True)
            labels = {name: [self._main, *(setting.label for setting in given)] for name, given in few.items()}
            judge = partial(self._judge, number)
            fusions = [name for name in fusions if answered_alone(task, found, labels[name], judge) is None]
        asked = [setting for fusion in fusions for setting in self._settings[fusion]]
        scores = self._evaluation.scores(self._reader, task, asked, greedy=greedy) if asked else []
        return {fusion: scores if fusion in fusions else [] for fusion in self._plan.fusions}

    def _judge(self, number: int) -> JudgedTask:
        """Returns how members answer a task alone; the evaluation keeps that."""
        task = self._plan.fitted_on[number]
        answers = [alone.answers(self._evaluation, task) for alone in self._everyone]
        rights = torch.tensor([[float(answer.right) for answer in of_member] for of_member in answers]).T
        following = any(policy != "static" for policy in self._policies)
        prompts = PromptLikelihoods.of(self._evaluation.prompt_likelihoods(self._reader, task)) if following else None
        return JudgedTask(task.name, rights, prompts)
