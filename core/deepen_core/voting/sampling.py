"""Samples several answers of an ensemble and of its members, all in one batch, and chooses one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from deepen_core.chat.messages import Prompt
from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.config.sampling import several_answers
from deepen_core.engine.engine import Engine
from deepen_core.engine.handle import Handle
from deepen_core.engine.scoring import score
from deepen_core.errors import SamplingError
from deepen_core.replies import ReplyParser, parse_reply
from deepen_core.results import Generation
from deepen_core.voting.ballot import Ballot
from deepen_core.voting.choice import Choice
from deepen_core.voting.likelihood import Likelihood

Among = Literal["ensemble", "members", "all"]
TEMPERATURE = 0.7
"""At which answers are sampled if the caller names none: that of self-consistency (arXiv 2203.11171, section 3.1)."""
ENSEMBLE = "ensemble"
"""What the answers of the ensemble are labelled with, beside the names of members."""


class Source(Protocol):
    """What answers: an ensemble, or a member alone."""

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> Handle:
        """Starts a request."""
        ...

    def thoughts(self, params: SamplingParams | None = None) -> Thoughts:
        """Returns whether answers to a conversation begin with thoughts."""
        ...


@dataclass(frozen=True)
class Poll:
    """How many answers are sampled, of what and how.

    Attributes:
        n: Number of answers of each source.
        among: "ensemble", "members" (each alone) or "all".
        params: The options of each of the `n` answers.
    """

    n: int
    among: Among
    params: list[SamplingParams]

    @classmethod
    def checked(cls, n: int, among: Among, params: SamplingParams) -> Poll:
        """Checks the options.

        Args:
            n: See `Poll`.
            among: See `Poll`.
            params: The options of the request: with a seed, each further answer uses the next number.

        Raises:
            SamplingError: For a number below 1, unknown sources, or several answers that would be equal.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise SamplingError(f"n is {n!r}: give the number of answers, 1 or more.")
        if among not in get_args(Among):
            raise SamplingError(f"Answers are sampled among {', '.join(get_args(Among))}, not {among!r}.")
        if "temperature" not in params.model_fields_set:
            params = resolve_sampling(params, {"temperature": TEMPERATURE})
        return cls(n, among, several_answers(params, n))

    def sources(self, ensemble: Source, members: Mapping[str, Source]) -> list[tuple[str, Source]]:
        """Returns what answers, by its label.

        Args:
            ensemble: The ensemble.
            members: Each member that takes part, alone.
        """
        together = [(ENSEMBLE, ensemble)] if self.among != "members" else []
        return [*together, *(members.items() if self.among != "ensemble" else ())]


def vote(sources: Sequence[tuple[str, Source]], prompt: Prompt, poll: Poll, ballot: Ballot, engine: Engine) -> Choice:
    """Samples answers and chooses one, see `Ensemble.vote`.

    Args:
        sources: What answers, by its label.
        prompt: A text or a conversation.
        poll: What is sampled.
        ballot: How one is chosen.
        engine: Tells how likely answers are.

    Raises:
        DeepenError: As from `Ensemble.generate` and `Ensemble.score`.
    """
    handles = [source.submit(prompt, params) for _, source in sources for params in poll.params]
    try:
        answers = [handle.result() for handle in handles]
    finally:
        for handle in handles:
            handle.cancel()
    by = [(label, source) for label, source in sources for _ in poll.params]
    is_text = isinstance(prompt, str)
    texts = [
        answer.text if is_text else _without_thoughts(answer, source, poll.params[0])
        for (_, source), answer in zip(by, answers, strict=True)
    ]
    found = ballot.choose(texts, likelihood_of(engine, prompt))
    labelled = zip(found.candidates, by, answers, strict=True)
    candidates = tuple(replace(one, source=label, generation=answer) for one, (label, _), answer in labelled)
    return replace(found, candidates=candidates)


def _without_thoughts(answer: Generation, source: Source, params: SamplingParams) -> str:
    thoughts = source.thoughts(params)
    if thoughts.mode == "never" or params.constraint:
        return answer.text
    return parse_reply(answer.text, ReplyParser(thoughts=thoughts)).text


def likelihood_of(engine: Engine, prompt: Prompt) -> Likelihood:
    """Returns what measures texts by their likelihood after a prompt, in nats a byte; all are read together.

    Args:
        engine: The ensemble.
        prompt: A text or a conversation.
    """

    def likelihood(texts: Sequence[str]) -> list[float]:
        scores = iter(score(engine, [(prompt, text) for text in texts if text]))
        return [one.total / one.bytes if text and (one := next(scores)) else -math.inf for text in texts]

    return likelihood
