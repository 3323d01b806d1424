"""Tiny random members on disk, shared by all engine tests."""

import pytest
import tiny

from deepen_core import Ensemble


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Model folders by name; `alpha` and `beta` differ in architecture and tokenizer."""
    root = tmp_path_factory.mktemp("models")
    return {
        "alpha": tiny.save_gpt2(root / "alpha", tiny.byte_level()),
        "beta": tiny.save_llama(root / "beta", tiny.sentencepiece_bpe()),
        "gamma": tiny.save_llama(root / "gamma", tiny.unigram(), seed=3, chat=False),
        "no_bos": tiny.save_llama(root / "no_bos", tiny.sentencepiece_bpe(bos=False), seed=4),
        "wordpiece": tiny.save_gpt2(root / "wordpiece", tiny.wordpiece(), seed=5),
    }


@pytest.fixture(scope="session")
def terse_folders(tmp_path_factory):
    """Two members with long windows whose answers to a schema end; the first one speaks."""
    root = tmp_path_factory.mktemp("terse")
    return [
        tiny.save_terse(root / "brief", tiny.byte_level()),
        tiny.save_llama(root / "wordy", tiny.sentencepiece_bpe(), window=8192),
    ]


@pytest.fixture(scope="session")
def terse(terse_folders):
    """An ensemble of the two."""
    with Ensemble.load(terse_folders, progress=False, device="cpu") as ensemble:
        yield ensemble


@pytest.fixture(scope="session")
def taught_folders(tmp_path_factory):
    """Two members that know when to call a tool, with what, in a few conversations."""
    import taught  # of LangChain's tests, which other tests do without

    return taught.save_taught(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="session")
def load(folders):
    """Loads an ensemble of named members."""

    def load_named(*names, **options):
        return Ensemble.load([folders[n] for n in names], **{"progress": False, "device": "cpu", **options})

    return load_named


@pytest.fixture(scope="session")
def pair(load):
    """The two members that most tests use."""
    return load("alpha", "beta")
