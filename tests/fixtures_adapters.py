"""Adapters of both frameworks, for what they share."""

import pytest

from deepen_integrations.langchain import DeepenLLM as LangChainLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM

ADAPTERS = {"langchain": LangChainLLM, "llama_index": LlamaIndexLLM}


@pytest.fixture(params=ADAPTERS)
def adapter(request):
    """The text model of each framework."""
    return ADAPTERS[request.param]


def ask(llm, prompt="Where?", **options):
    return llm.invoke(prompt, **options) if isinstance(llm, LangChainLLM) else llm.complete(prompt, **options).text
