"""Tiny random members on disk, shared by all engine tests."""

import pytest
import tiny

from deepen_core import Ensemble


@pytest.fixture(scope="session")
def folders(made_once):
    """Model folders by name; `alpha` and `beta` differ in architecture and tokenizer."""

    def make(root):
        tiny.save_gpt2(root / "alpha", tiny.byte_level())
        tiny.save_llama(root / "beta", tiny.sentencepiece_bpe())
        tiny.save_llama(root / "gamma", tiny.unigram(), seed=3, chat=False)
        tiny.save_llama(root / "no_bos", tiny.sentencepiece_bpe(bos=False), seed=4)
        tiny.save_gpt2(root / "wordpiece", tiny.wordpiece(), seed=5)

    root = made_once("models", make)
    return {name: root / name for name in ("alpha", "beta", "gamma", "no_bos", "wordpiece")}


@pytest.fixture(scope="session")
def terse_folders(made_once):
    """Two members with long windows whose answers to a schema end; the first one speaks."""

    def make(root):
        tiny.save_terse(root / "brief", tiny.byte_level())
        tiny.save_llama(root / "wordy", tiny.sentencepiece_bpe(), window=8192, layers=1)

    root = made_once("terse", make)
    return [root / "brief", root / "wordy"]


@pytest.fixture(scope="session")
def terse(terse_folders):
    """An ensemble of the two."""
    with Ensemble.load(terse_folders, progress=False, device="cpu") as ensemble:
        yield ensemble


@pytest.fixture(scope="session")
def taught_folders(made_once):
    """Two members that know when to call a tool, with what, in a few conversations."""
    import taught  # of LangChain's tests, which other tests do without

    root = made_once("taught", taught.save_taught)
    return [root / "cook", root / "waiter"]


@pytest.fixture(scope="session")
def seq2seq_folders(made_once):
    """Folders of encoder-decoder models, by the names of their families."""
    import tiny_seq2seq

    def make(root):
        for name, save in tiny_seq2seq.FAMILIES.items():
            save(root / name)

    root = made_once("seq2seq", make)
    return {name: root / name for name in tiny_seq2seq.FAMILIES}


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


@pytest.fixture(scope="session")
def gguf_files(made_once, folders):
    """GGUF files by name: of `beta`, of a model with a byte-level tokenizer, and both with weights of 8 bits."""
    from gguf import GGMLQuantizationType  # of the extra gguf, without which other tests do
    from tiny_gguf import save_gguf

    def make(root):
        byte_level = tiny.save_llama(root / "byte-level", tiny.byte_level(), seed=6)
        for name, folder in {"beta": folders["beta"], "delta": byte_level}.items():
            save_gguf(folder, root / f"{name}.gguf")
            save_gguf(folder, root / f"{name}-q8.gguf", kind=GGMLQuantizationType.Q8_0)

    root = made_once("gguf", make)
    return {path.stem: path for path in root.glob("*.gguf")} | {"folder of delta": root / "byte-level"}
