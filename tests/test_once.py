"""Models of the tests are made once for a run, by whichever process, and are the same."""

import pytest
import tiny


def test_a_folder_is_made_once(made_once):
    made = []

    def make(root):
        made.append(root)
        (root / "file").write_text("whole", encoding="utf-8")

    folders = [made_once("of a test", make) for _ in range(3)]
    assert len(made) == len(set(folders)) == 1
    assert (folders[0] / "file").read_text(encoding="utf-8") == "whole"


def test_what_was_left_half_made_is_made_anew(made_once):
    def break_off(root):
        (root / "file").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once("broken off", break_off)
    assert not list(made_once("broken off", lambda root: None).iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: tiny.save_gpt2(folder, tiny.byte_level()),
        lambda folder: tiny.save_llama(folder, tiny.sentencepiece_bpe()),
        lambda folder: tiny.save_llama(folder, tiny.unigram(), chat=False),
        lambda folder: tiny.save_gpt2(folder, tiny.wordpiece()),
        lambda folder: tiny.save_terse(folder, tiny.byte_level()),
    ],
    ids=["byte-level", "BPE", "unigram", "wordpiece", "terse"],
)
def test_a_model_has_the_same_bytes_whoever_makes_it(make, tmp_path):
    one, other = make(tmp_path / "one" / "model"), make(tmp_path / "other" / "model")
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert "model.safetensors" in names
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
