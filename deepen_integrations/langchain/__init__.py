"""DeePEn ensembles as LangChain models."""

from deepen_integrations.extras import require

require("langchain_core", extra="langchain")

from deepen_integrations.langchain.llms import DeepenLLM  # noqa: E402 (says first what is missing)

__all__ = ["DeepenLLM"]
