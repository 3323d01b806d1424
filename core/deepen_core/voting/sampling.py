"""Samples several answers of an ensemble and of its members, all in one batch, and chooses one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from deepen_core.chat.messages import Prompt, check_messages, prompt_list
from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.config.sampling import several_answers
from deepen_core.engine.engine import Engine
from deepen_core.engine.handle import Handle
from deepen_core.engine.scoring import score
from deepen_core.errors import ContextWindowError, PromptError, SamplingError
from deepen_core.replies import ReplyParser, parse_reply
from deepen_core.results import Score
from deepen_core.voting.ballot import Ballot
from deepen_core.voting.choice import Choice
from deepen_core.voting.likelihood import Likelihood

Among = Literal["ensemble", "members", "all"]
TEMPERATURE = 0.7
"""At which answers are sampled if the caller names none: that of self-consistency (arXiv 2203.11171, section 3.1)."""
ENSEMBLE = "ensemble"
"""What the answers of the ensemble are labelled with, beside the names of members."""


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
    def checked(cls, n: object, among: Among, params: SamplingParams) -> Poll:
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

    def sources(self, engine: Engine) -> list[tuple[str, Engine]]:
        """Returns what answers, by its label.

        Args:
            engine: The ensemble.
        """
        together = [(ENSEMBLE, engine)] if self.among != "members" else []
        if self.among == "ensemble":
            return together
        return together + [(engine.members[number].name, engine.members_alone[number]) for number in engine.counted]


def vote(engine: Engine, prompt: Prompt, poll: Poll, ballot: Ballot, owner: object) -> Choice:
    """Samples answers and chooses one, see `Ensemble.vote`.

    Args:
        engine: The ensemble.
        prompt: A text or a conversation.
        poll: What is sampled.
        ballot: How one is chosen.
        owner: Kept alive until the answers are there.

    Raises:
        PromptError: If there are several prompts.
        DeepenError: As from `Ensemble.generate` and `Ensemble.score`.
    """
    made_at = time.perf_counter()
    prompts, single = prompt_list(prompt)
    if not single:
        raise PromptError(f"vote takes one prompt, and these are {len(prompts)}: vote on each of them.")
    asked = prompts[0] if isinstance(prompts[0], str) else check_messages(prompts[0])
    engine.worker.check_room()
    sources = poll.sources(engine)
    started = [(each, [each.decoder.start(asked, one) for one in poll.params]) for _, each in sources]
    handles: list[Handle] = []
    try:
        for each, sequences in started:
            handles += engine.worker.submit(sequences, owner, each.decoder, made_at)
        answers = [handle.result() for handle in handles]
    finally:
        for handle in handles:
            handle.cancel()
    by = [source for source in sources for _ in poll.params]
    texts = [
        answer.text if isinstance(asked, str) else _without_thoughts(answer.text, each, poll.params[0])
        for (_, each), answer in zip(by, answers, strict=True)
    ]
    found = ballot.choose(texts, likelihood_of(engine, asked))
    labelled = zip(found.candidates, by, answers, strict=True)
    candidates = tuple(replace(one, source=label, generation=answer) for one, (label, _), answer in labelled)
    return replace(found, candidates=candidates)


def _without_thoughts(text: str, source: Engine, params: SamplingParams) -> str:
    """Returns an answer to a conversation without the thoughts before it."""
    reader = source.main_member.tokenizer.reader
    thoughts = reader.thoughts(reader.variables(params))
    if thoughts.mode == "never" or params.constraint:
        return text
    return parse_reply(text, ReplyParser(thoughts=thoughts)).text


def likelihood_of(engine: Engine, prompt: Prompt) -> Likelihood:
    """Returns what measures texts by their likelihood after a prompt, in nats a byte; all are read together.

    A text that is empty, too long for a member after the prompt, or without tokens (as a blank is for some tokenizers)
    has none.

    Args:
        engine: The ensemble.
        prompt: A text or a conversation.
    """

    def likelihood(texts: Sequence[str]) -> list[float]:
        asked = [text for text in texts if text]
        known = dict(zip(asked, _scores(engine, [(prompt, text) for text in asked]), strict=True))
        scores = [known.get(text) for text in texts]
        return [-math.inf if one is None else one.total / one.bytes for one in scores]

    return likelihood


def _scores(engine: Engine, asked: Sequence[tuple[Prompt, str]]) -> list[Score | None]:
    try:
        return [*score(engine, asked)]
    except (ContextWindowError, PromptError):
        if len(asked) == 1:
            return [None]
        middle = len(asked) // 2  # the others are still read together
        return [*_scores(engine, asked[:middle]), *_scores(engine, asked[middle:])]
