"""Random members with windows that retrieval fits into, and LlamaIndex's global settings made fresh."""

import pytest
import tiny

from deepen_core import Ensemble


@pytest.fixture(scope="session")
def reading_folders(made_once):
    """Two members each, with chat templates and without, whose tokenizers and windows differ."""
    kinds = ("texts", "chats")

    def make(root):
        for kind in kinds:
            tiny.save_gpt2(root / kind / "one", tiny.byte_level(), window=2400, chat=kind == "chats")
            tiny.save_llama(root / kind / "two", tiny.sentencepiece_bpe(), window=2200, chat=kind == "chats")

    root = made_once("readers", make)
    return {kind: [root / kind / "one", root / kind / "two"] for kind in kinds}


@pytest.fixture(scope="session")
def reading_ensembles(reading_folders):
    loaded = {kind: Ensemble.load(folders, progress=False) for kind, folders in reading_folders.items()}
    yield loaded
    for ensemble in loaded.values():
        ensemble.close()


@pytest.fixture
def fresh_settings(monkeypatch):
    """LlamaIndex's settings, with nothing in them that came from elsewhere; as they were again afterwards."""
    import llama_index.core
    from llama_index.core import Settings

    for variable in ("TIKTOKEN_CACHE_DIR", "NLTK_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(llama_index.core, "global_tokenizer", None)
    made = ("llm", "embed_model", "node_parser", "prompt_helper", "chat_prompt_helper", "transformations")
    for name in (*made, "callback_manager", "tokenizer"):
        monkeypatch.setattr(Settings, f"_{name}", None, raising=False)  # one of them came with LlamaIndex 0.14.22
    return Settings


@pytest.fixture
def events():
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index_parts import Events

    handler, dispatcher = Events(seen=[]), get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)
