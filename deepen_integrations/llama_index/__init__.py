"""DeePEn ensembles as LlamaIndex models."""

from deepen_integrations.extras import require

require("llama_index.core", extra="llama-index")

from deepen_integrations.llama_index.embeddings import HashingEmbedding  # noqa: E402 (says first what is missing)
from deepen_integrations.llama_index.llms import DeepenLLM  # noqa: E402

__all__ = ["DeepenLLM", "HashingEmbedding"]
