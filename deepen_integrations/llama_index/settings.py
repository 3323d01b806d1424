"""LlamaIndex's global settings, set to fit an ensemble."""

from __future__ import annotations

from llama_index.core import Settings

from deepen_integrations.llama_index.llms import DeepenLLM


def configure_settings(llm: DeepenLLM) -> None:
    """Makes an ensemble LlamaIndex's default model, and its main member's tokenizer the one that everything counts by.

    LlamaIndex counts by a tokenizer of OpenAI's unless told otherwise, and fills prompts to what it has counted. What
    it has made of other settings before is made anew. Splitters, memories and indices that are already there keep what
    they were made with: call this first. Loads the models.

    Args:
        llm: The ensemble.

    Raises:
        ClosedError: If it was closed.
        DeepenError: If it cannot be loaded.
    """
    Settings.tokenizer = llm.ensemble.tokenize
    Settings.llm = llm
    for made in ("_prompt_helper", "_chat_prompt_helper", "_node_parser", "_transformations"):
        setattr(Settings, made, None)
