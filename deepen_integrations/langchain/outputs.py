"""Turns the engine's answers into LangChain's results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from deepen_core.errors import DeepenError
from deepen_integrations.adapter import report
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
        outcomes: An answer or an error for each.
        model_name: The model's name, for the metadata.
        errors_apart: Raise an error that holds the outcome of each prompt, instead of the first error.

    Raises:
        DeepenError: If any outcome is an error.
    """
    if errors := [outcome for outcome in outcomes if isinstance(outcome, DeepenError)]:
        raise PartialFailureError(prompts, outcomes) if errors_apart else errors[0]
    answers = zip(prompts, cast("Sequence[Answer]", outcomes), strict=True)
    return _result([Generation(text=a.text, generation_info=_info(a, model_name)) for _, a in answers], model_name)


def generation_chunk(piece: Chunk, model_name: str) -> GenerationChunk:
    """Makes the chunk of a piece of an answer.

    LangChain merges chunks by adding them, so only the last one has metadata.
    """
    info = None if piece.generation is None else _info(piece.generation, model_name)
    return GenerationChunk(text=piece.text, generation_info=info)


def joined_chunks(chunks: Sequence[GenerationChunk]) -> LLMResult:
    """Makes the result of all chunks of one answer."""
    info = chunks[-1].generation_info
    assert info is not None, "the last chunk of a stream has metadata"
    generation = Generation(text="".join(chunk.text for chunk in chunks), generation_info=info)
    return _result([generation], info["model_name"])


def _info(answer: Answer, model_name: str) -> dict[str, Any]:
    return {**report(answer), "model_name": model_name}


def _result(generations: Sequence[Generation], model_name: str) -> LLMResult:
    """One candidate for each prompt, and the total token counts."""
    usages = [(generation.generation_info or {})["usage"] for generation in generations]
    totals = {key: sum(usage[key] for usage in usages) for key in (usages[0] if usages else ())}
    return LLMResult(
        generations=[[generation] for generation in generations],
        llm_output={"token_usage": totals, "model_name": model_name},
    )
