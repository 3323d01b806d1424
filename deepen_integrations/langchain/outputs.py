"""Turns the engine's answers into LangChain's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from deepen_core.errors import DeepenError
from deepen_integrations.adapter import openai_logprobs, report, trace_part
from deepen_integrations.langchain.partial_failures import PartialFailureError

if TYPE_CHECKING:
    from deepen_core.engine.frontend import Outcome
    from deepen_core.results import Chunk
    from deepen_core.results import Generation as Answer


def llm_result(
    prompts: Sequence[str], outcomes: Sequence[Outcome], model_name: str, errors_apart: bool = False
) -> LLMResult:
    """Makes the result of some prompts: one list of candidates for each.

    Args:
        prompts: The prompts.
        outcomes: An answer or an error for each prompt. Several answers to a prompt are adjacent.
        model_name: The model's name, for the metadata.
        errors_apart: Raise an error that holds the outcome of each prompt, instead of the first error.

    Raises:
        DeepenError: If any outcome is an error.
    """
    if errors := [outcome for outcome in outcomes if isinstance(outcome, DeepenError)]:
        raise PartialFailureError(prompts, outcomes) if errors_apart else errors[0]
    answers = [
        Generation(text=answer.text, generation_info=_info(answer, model_name))
        for answer in cast("Sequence[Answer]", outcomes)
    ]
    n = max(1, len(answers) // max(1, len(prompts)))
    each = [answers[first : first + n] for first in range(0, len(answers), n)]
    return _result([found for _, found in zip(prompts, each, strict=True)], model_name)


def generation_chunk(piece: Chunk, model_name: str) -> GenerationChunk:
    """Makes the chunk of a piece of an answer.

    LangChain merges chunks by adding them. So only the last chunk has the metadata, and each chunk has the logprobs and
    the steps of the trace of its own tokens.
    """
    info = {} if piece.generation is None else _info(piece.generation, model_name)
    if piece.logprobs is not None:
        info["logprobs"] = openai_logprobs(piece.logprobs)
    if piece.trace is not None:
        info["trace"] = trace_part(piece.trace, last=piece.generation is not None)
    return GenerationChunk(text=piece.text, generation_info=info or None)


def joined_chunks(chunks: Sequence[GenerationChunk]) -> LLMResult:
    """Makes the result of all chunks of one answer."""
    infos = [chunk.generation_info or {} for chunk in chunks]
    info = dict(infos[-1])
    if "logprobs" in info:
        info["logprobs"] = {"content": [token for each in infos for token in each["logprobs"]["content"]]}
    if "trace" in info:
        info["trace"] = {**info["trace"], "steps": [step for each in infos for step in each["trace"]["steps"]]}
    generation = Generation(text="".join(chunk.text for chunk in chunks), generation_info=info)
    return _result([[generation]], info["model_name"])


def _info(answer: Answer, model_name: str) -> dict[str, Any]:
    return {**report(answer), "model_name": model_name}


def _result(generations: Sequence[list[Generation]], model_name: str) -> LLMResult:
    """The candidates for each prompt, and the total token counts."""
    totals = total_usage([[(answer.generation_info or {})["usage"] for answer in each] for each in generations])
    return LLMResult(
        generations=[*generations],
        llm_output={"token_usage": totals, "model_name": model_name},
    )


def total_usage(usages: Sequence[Sequence[Mapping[str, int]]]) -> dict[str, int]:
    """Adds the token counts of all answers. The tokens of a prompt count once, however many answers it has.

    Args:
        usages: For each prompt, the counts of each of its answers.
    """
    if not usages:
        return {}
    prompts = sum(each[0]["prompt_tokens"] for each in usages)
    answers = sum(usage["completion_tokens"] for each in usages for usage in each)
    return {"prompt_tokens": prompts, "completion_tokens": answers, "total_tokens": prompts + answers}
