"""DeePEn ensembles as LangChain models."""

from deepen_integrations.extras import require

require("langchain_core", extra="langchain")

from deepen_core import __version__  # noqa: E402 (the error for a missing extra comes first)
from deepen_integrations.langchain.chat_models import ChatDeepen  # noqa: E402
from deepen_integrations.langchain.embeddings import HashingEmbeddings  # noqa: E402
from deepen_integrations.langchain.llms import DeepenLLM  # noqa: E402
from deepen_integrations.langchain.voting import VotingRunnable  # noqa: E402

__all__ = ["ChatDeepen", "DeepenLLM", "HashingEmbeddings", "VotingRunnable", "__version__"]
