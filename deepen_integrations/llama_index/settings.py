"""Fits LlamaIndex's global settings to an ensemble."""

from __future__ import annotations

from llama_index.core import Settings

from deepen_integrations.llama_index.llms import DeepenLLM


def configure_settings(llm: DeepenLLM) -> None:
    """Makes an ensemble LlamaIndex's default model, and its main member's tokenizer the default for counting.

    By default LlamaIndex counts with one of OpenAI's tokenizers, and fills prompts by that count. Objects that it has
    derived from earlier settings are rebuilt. Existing splitters, memories and indices keep their tokenizer, so call
    this first. Loads the models.

    Args:
        llm: The ensemble.

    Raises:
        ClosedError: If the ensemble was closed.
        DeepenError: If it cannot be loaded.
    """
    Settings.tokenizer = llm.ensemble.tokenize
    Settings.llm = llm
    for derived in ("_prompt_helper", "_chat_prompt_helper", "_node_parser", "_transformations"):
        setattr(Settings, derived, None)
