"""LangChain's own tests of chat models.

They run on two random members with different tokenizers, which can follow any schema and understand nothing; tests that
need a model to understand are expected to fail there. With `DEEPEN_TEST_MODELS=folder,folder` they run on real models,
and none is expected to fail.
"""

import os
from types import SimpleNamespace

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from deepen_integrations.langchain import ChatDeepen

REAL = [folder for folder in os.environ.get("DEEPEN_TEST_MODELS", "").split(",") if folder]
needs_meaning = pytest.mark.xfail(not REAL, reason="random members do not understand what they are asked")


@pytest.fixture(scope="module")
def held(terse_folders):
    """The ensemble stays loaded from one test to the next."""
    folders = REAL or [str(folder) for folder in terse_folders]
    with ChatDeepen(models=folders, progress=False) as model:
        yield SimpleNamespace(folders=folders, loaded=model.ensemble)


class _OnMembers:
    folders: list

    @pytest.fixture(autouse=True)
    def _members(self, held):
        self.folders = held.folders

    @property
    def chat_model_class(self):
        return ChatDeepen

    @property
    def chat_model_params(self):
        return {"models": self.folders, "progress": False}

    @property
    def has_tool_calling(self):
        return True

    @property
    def has_tool_choice(self):
        return True

    @property
    def has_structured_output(self):
        return True


class TestChatDeepenUnit(_OnMembers, ChatModelUnitTests):
    pass


class TestChatDeepenIntegration(_OnMembers, ChatModelIntegrationTests):
    @property
    def chat_model_params(self):
        return {**super().chat_model_params, "max_tokens": 600}

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True

    @needs_meaning
    def test_tool_calling(self, model):
        super().test_tool_calling(model)

    @needs_meaning
    async def test_tool_calling_async(self, model):
        await super().test_tool_calling_async(model)

    @needs_meaning
    def test_agent_loop(self, model):
        super().test_agent_loop(model)

    @needs_meaning
    def test_unicode_tool_call_integration(self, model, **options):
        super().test_unicode_tool_call_integration(model, **options)
