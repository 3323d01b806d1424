"""What an ensemble is measured by: the likelihood of texts, votes, evaluations, and weights that fit examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from deepen_core.chat.messages import Prompt
from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.engine.engine import Engine
from deepen_core.engine.scoring import paired, score
from deepen_core.evaluation.fitted_weights import By, FittedPolicy, FittedWeights
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.run import Outcome, fit, run
from deepen_core.evaluation.task_file import read_task
from deepen_core.results import Score
from deepen_core.voting import Ballot, Choice, Extract
from deepen_core.voting import By as ChosenBy
from deepen_core.voting.risk import Utility
from deepen_core.voting.sampling import Among, Poll, vote


class Measures(ABC):
    """Measures texts, answers and settings with the members of an engine."""

    @abstractmethod
    def _opened(self) -> Engine:
        """Returns the engine.

        Raises:
            ClosedError: If the ensemble was closed.
        """

    @overload
    def score(self, prompt: Prompt, continuation: str, *, greedy: bool = False) -> Score: ...
    @overload
    def score(
        self, prompt: Prompt | Sequence[Prompt], continuation: list[str], *, greedy: bool = False
    ) -> list[Score]: ...
    def score(self, prompt: Any, continuation: str | list[str], *, greedy: bool = False) -> Score | list[Score]:
        """Returns the log-probabilities of given continuations, fused and under each member alone.

        Every member reads a text once, at the speed of a prompt. Several continuations are read together; those of one
        prompt share it.

        Args:
            prompt: The text or conversation before the continuation; a text may be empty if every member has a BOS
                token. Or, with several continuations, one prompt for each, or one for all of them.
            continuation: The text to score, not empty, or several.
            greedy: Report too which tokens are the most probable ones, as `Score.greedy`.

        Returns:
            One score for one continuation, and a list for several.

        Raises:
            ChatTemplateError: If a conversation is given and a member cannot read it.
            PromptError: If a continuation is empty, or there is not one prompt for each.
            ContextWindowError: If the two together are longer than a member's window.
            MemberError: If a member fails.
        """
        engine = self._opened()
        if isinstance(continuation, str):
            return score(engine, paired([prompt], [continuation]), greedy=greedy)[0]
        return score(engine, paired(prompt, continuation), greedy=greedy)

    def vote(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        n: int = 5,
        by: ChosenBy = "majority",
        extract: Extract = "short",
        utility: Utility | None = None,
        among: Among = "ensemble",
        **options: Any,
    ) -> Choice:
        """Samples several answers to a prompt, decoded together, and chooses one.

        Args:
            prompt: A text or a conversation; thoughts before an answer do not count.
            params: Options of the request. By default answers are sampled at temperature 0.7. With a `seed`, each
                further answer uses the next number as its seed, the same ones for each source.
            n: Number of answers of each source.
            by: "majority": the answer that most come to (`deepen_core.voting.majority_vote`); "mbr": the one that has
                most in common with the others (`minimum_bayes_risk`); "likelihood": the likeliest a byte under this
                ensemble. The last also decides among those of the majority's answer, and between equal ones.
            extract: What an answer comes to: "short", "number", "answer", a regular expression with a group, or a
                function, see `deepen_core.voting.extractor`.
            utility: For "mbr": how good an answer (the first) is if another is right; chrF by default (extra `voting`).
            among: What answers: this "ensemble", its "members" that take part, each alone, or "all" of these.
            options: Options by keyword.

        Raises:
            SamplingError: For a wrong option, or if all answers would be equal (temperature 0).
            DeepenError: As from `generate` and `score`.
        """
        ballot = Ballot(by, extract, utility)
        poll = Poll.checked(n, among, resolve_sampling(params, options))
        return vote(self._opened(), prompt, poll, ballot, owner=self)

    def evaluate(self, plan: Plan, *, output: str | Path | None = None, progress: bool = True) -> Outcome:
        """Measures what an ensemble of these members is worth against each of them, on questions and exercises.

        The ensemble's own main member, weights and strategy are not looked at, and do not change.

        Args:
            plan: Tasks and what is compared on them.
            output: A folder that keeps what is measured: an evaluation in the same folder goes on from there.
            progress: Show bars, if stderr is a terminal, or in a notebook. The logger `deepen_core` gets a line at
                level INFO at most twice a minute.

        Raises:
            ChatTemplateError: If the plan asks for conversations, and a member cannot read them.
            EvaluationError: If the plan or the folder cannot be used.
            MemberError: If a member fails.
            NoCommonTokensError: If a strategy needs shared tokens, and there are none.
        """
        return run(self._opened(), plan, None if output is None else Path(output), progress=progress)

    def fit_weights(
        self,
        examples: str | Path | Sequence[str | Path],
        *,
        by: By = "score",
        policy: FittedPolicy = "static",
        limit: int | None = None,
        output: str | Path | None = None,
        progress: bool = True,
    ) -> FittedWeights:
        """Returns the weights with which this ensemble, with its main member and strategy, does best on examples.

        Give `option` of the result to `load` as `weights`. The ensemble's own weights are not looked at, and do not
        change.

        Args:
            examples: Files of JSON lines: questions with `question` and `choices` and `answer` (the number of the right
                choice) or `answers`, translations with `source` and `translation`, exercises with `prompt`, `test` and
                `entry_point` (the programs that members write are run), or texts with `prompt` and `text`.
            by: What to be best at: "score", the share of questions that are answered right, or "likelihood", how likely
                right answers and texts become. For open questions, the first of the `answers`, or the `solution`, is
                read and nothing generated: it is right where greedy decoding would write just that. If hardly any is,
                and for exercises, each member answers alone, and weights are worth the mean of what the members are
                (`FittedWeights.by`). If nothing at all is right, they are fitted by likelihood.
            policy: "static" for numbers; or "perplexity" for the shares with which members are weighed by the prompt.
                Where prompts do not show which member is right, so that numbers are better by more than one standard
                error, the result is numbers.
            limit: At most so many items of each file.
            output: A folder that keeps what is measured: fitting again goes on from there.
            progress: As for `evaluate`.

        Raises:
            ConfigurationError: If the strategy has options of its own, and there is a folder.
            EvaluationError: If a file, the folder or the policy cannot be used.
            MemberError: If a member fails.
        """
        paths = [examples] if isinstance(examples, (str, Path)) else examples
        tasks = [read_task(path, limit) for path in paths]
        place = None if output is None else Path(output)
        return fit(self._opened(), tasks, place, by=by, policy=policy, progress=progress)
