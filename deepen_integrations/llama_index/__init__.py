"""DeePEn ensembles as LlamaIndex models."""

from deepen_integrations.extras import require

require("llama_index.core", extra="llama-index")

from llama_index.core.llms.loading import RECOGNIZED_LLMS  # noqa: E402 (the error for a missing extra comes first)

from deepen_integrations.llama_index.embeddings import HashingEmbedding  # noqa: E402
from deepen_integrations.llama_index.function_calling import DeepenToolLLM  # noqa: E402
from deepen_integrations.llama_index.ingestion import NodeByNode  # noqa: E402
from deepen_integrations.llama_index.llms import DeepenLLM  # noqa: E402
from deepen_integrations.llama_index.settings import configure_settings  # noqa: E402

# `load_llm` restores extractors and the like from their serialized form, and finds classes here only. This is all that
# the import changes.
RECOGNIZED_LLMS.update({model.class_name(): model for model in (DeepenLLM, DeepenToolLLM)})

__all__ = ["DeepenLLM", "DeepenToolLLM", "HashingEmbedding", "NodeByNode", "configure_settings"]
