"""What to evaluate, and which plans make no sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from deepen_core.config import PRESETS
from deepen_core.config.weights import POLICIES
from deepen_core.errors import EvaluationError
from deepen_core.evaluation.fitted_weights import By, FittedPolicy
from deepen_core.evaluation.items import OpenItem, Task, TranslationItem
from deepen_core.evaluation.ledger import digest
from deepen_core.voting.risk import chrf
from deepen_core.voting.sampling import TEMPERATURE


@dataclass(frozen=True)
class Plan:
    """What to evaluate.

    Attributes:
        tasks: Compared on these: questions with choices, open questions and exercises.
        fitted_on: Weights are fitted on these; none for no fitted weights. With the policy "perplexity", the shares
            that it starts from are fitted too.
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
    policies: Sequence[str] = ("adaptive", "confidence", "consistency", "perplexity", "context")
    gates: Sequence[float] = (0.5, 0.9)
    mains: Sequence[int] = (0,)
    by: By = "score"
    chat: bool = False
    shots: Sequence[Task] = ()
    together: int = 16
    votes: int = 0
    vote_temperature: float = TEMPERATURE

    @property
    def fitted_policies(self) -> list[FittedPolicy]:
        """What weights are fitted for: "static", and "perplexity" if it is compared."""
        return [policy for policy in get_args(FittedPolicy) if policy == "static" or policy in self.policies]

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
            _check_translations(task)

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
            EvaluationError: If a task has exercises where likelihood counts, or texts where right answers do.
            SamplingError: If translations are to be judged, since sacrebleu is not installed.
        """
        if self.by not in get_args(By):
            raise EvaluationError(f"Weights are fitted by {' or '.join(get_args(By))}, not by {self.by!r}.")
        for task in self.fitted_on:
            if task.has_exercises and self.by == "likelihood":
                raise EvaluationError(f"{task.name} has exercises, which have no right answer to read: fit by score.")
            if not task.is_right_or_wrong and self.by == "score":
                raise EvaluationError(f"{task.name} has texts without choices: fit by likelihood.")
            if self.by == "score":
                _check_translations(task)


def _check_translations(task: Task) -> None:
    """Says what is missing where translations cannot be judged."""
    if any(isinstance(item, TranslationItem) for item in task.items):
        chrf()
