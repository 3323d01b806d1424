"""The harness's options of generation as options of the engine, and answers as the harness wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from deepen_core.chat.messages import Prompt
from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams, resolve_sampling
from deepen_integrations.harness.conversation import prompt_of
from deepen_integrations.harness.fitting import fitted

if TYPE_CHECKING:
    from deepen_core import Ensemble


@dataclass(frozen=True)
class Question:
    """A request for an answer.

    Attributes:
        prompt: What the members are shown.
        params: How to answer.
        until: The answer ends before the first of these.
        thoughts_end: The mark at the end of thoughts, if main may write some before the answer.
    """

    prompt: Prompt
    params: SamplingParams
    until: tuple[str, ...]
    thoughts_end: str | None

    def answer(self, text: str) -> str:
        """Returns the answer in what the members have written: after all thoughts, up to the first stop string."""
        return str(postprocess_generated_text(text, list(self.until), self.thoughts_end))


def question(ensemble: Ensemble, context: str, options: Mapping[str, Any], *, max_gen_toks: int, seed: int) -> Question:
    """Reads a request of the harness.

    Args:
        ensemble: The ensemble.
        context: As the harness has it.
        options: The harness's, and options of `SamplingParams`.
        max_gen_toks: Most tokens of the answer, where the options do not say.
        seed: For an answer that is sampled.

    Raises:
        PromptError: If the context cannot be read.
        SamplingError: For an option that is unknown or has a wrong value.
    """
    given = dict(normalize_gen_kwargs(dict(options), max_gen_toks))
    until = tuple(text for text in given.pop("until") if text)
    if given.get("num_beams") == 1:
        del given["num_beams"]
    most = given.pop("max_gen_toks")
    # As in transformers, a request to sample that names no temperature has 1.
    given["temperature"] = given.get("temperature", 1.0) if given.pop("do_sample") else 0.0
    if given["temperature"]:
        given.setdefault("seed", seed)
    params = resolve_sampling(None, {**given, "max_new_tokens": most})
    prompt = prompt_of(context)
    thoughts = Thoughts() if isinstance(prompt, str) else ensemble.thoughts(params)
    thinks = thoughts.mode != "never"
    if not thinks:  # thoughts may hold what ends an answer
        params = resolve_sampling(params, {"stop": until})
    kept = fitted(ensemble, prompt, "", max(0.5, 1.0 - most / ensemble.budget.main_window))
    return Question(kept, params, until, thoughts.marks.end if thinks else None)
