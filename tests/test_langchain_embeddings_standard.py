"""LangChain's own tests of embeddings, on the one that needs no model."""

from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from deepen_integrations.langchain import HashingEmbeddings


class _OnHashing:
    @property
    def embeddings_class(self):
        return HashingEmbeddings

    @property
    def embedding_model_params(self):
        return {"dimension": 64}


class TestHashingEmbeddingsUnit(_OnHashing, EmbeddingsUnitTests):
    pass


class TestHashingEmbeddingsIntegration(_OnHashing, EmbeddingsIntegrationTests):
    pass
