"""LangChain's own tests of chat models, none of them expected to fail.

They run on two random members with different tokenizers, which can follow any schema and understand nothing; those that
need a model to understand what it is asked run on two that have learned a few conversations by heart. With
`DEEPEN_TEST_MODELS=folder,folder` all of them run on real models.
"""

import importlib
import os

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from deepen_integrations.langchain import ChatDeepen

REAL = [folder for folder in os.environ.get("DEEPEN_TEST_MODELS", "").split(",") if folder]
NEED_MEANING = {"test_tool_calling", "test_tool_calling_async", "test_agent_loop", "test_unicode_tool_call_integration"}
# Nothing but their limit ends the texts of random models; what follows a schema needs the room to end by itself.
FREE_TEXT = {
    *("test_invoke", "test_ainvoke", "test_stream", "test_astream", "test_batch", "test_abatch"),
    *("test_stream_events_v3", "test_astream_events_v3", "test_conversation", "test_double_messages_conversation"),
    *("test_usage_metadata", "test_usage_metadata_streaming", "test_stop_sequence"),
    *("test_tool_message_histories_string_content", "test_tool_message_histories_list_content"),
    *("test_tool_message_error_status", "test_anthropic_inputs", "test_message_with_name"),
}

# Random models fill in a string as it comes; the most probable one may be empty, which this test does not accept.
FILLS_IN = {"test_bind_runnables_as_tools"}

# By the prompt, one random model would have all the say, and repeat a call until its room ends.
BOTH = {"weights": "adaptive"}


@pytest.fixture(scope="module")
def held(terse_folders):
    """The ensemble stays loaded from one test to the next."""
    with ChatDeepen(models=REAL or terse_folders, progress=False, **({} if REAL else BOTH)) as model:
        yield model.ensemble


class _OnMembers:
    folders: list

    @pytest.fixture(autouse=True)
    def _members(self, request, held, terse_folders):
        understands = not REAL and request.node.originalname in NEED_MEANING
        self.folders = request.getfixturevalue("taught_folders") if understands else REAL or terse_folders

    @property
    def chat_model_class(self):
        return ChatDeepen

    @property
    def chat_model_params(self):
        return {"models": self.folders, "progress": False} | ({} if REAL else BOTH)

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
    """These only construct; what `dumps` writes is compared with `__snapshots__`, made by `--snapshot-update`."""

    @pytest.fixture(autouse=True)
    def _members(self, monkeypatch):
        """LangChain's test allows what LangChain lists, which are its own partners; elsewhere one names the class."""
        load = importlib.import_module("langchain_core.load.load")  # the package has a function of this name
        path = tuple(ChatDeepen.lc_id())
        monkeypatch.setitem(load.ALL_SERIALIZABLE_MAPPINGS, path, path)
        monkeypatch.setattr(load, "_default_class_paths_cache", {})

    @property
    def chat_model_params(self):
        return {"models": "demo", "progress": False}


class TestChatDeepenIntegration(_OnMembers, ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _options(self, request):
        self.options = {"max_tokens": 60 if request.node.originalname in FREE_TEXT else 600}
        if request.node.originalname in FILLS_IN and not REAL:
            self.options |= {"temperature": 1.0, "seed": 2}

    @property
    def chat_model_params(self):
        return {**super().chat_model_params, **self.options}

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True
