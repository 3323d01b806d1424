"""`fusion="auto"`: what it chooses, and that it then is that strategy."""

from types import SimpleNamespace

import pytest
import tiny
from strategy_parts import members as vocabularies

from deepen_core import Ensemble
from deepen_core.errors import CompatibilityWarning
from deepen_core.fusion.auto import choose

PROMPT = "The quick brown fox"


def fakes(*lengths, shared=True):
    made = vocabularies(len(lengths))
    if not shared:
        made = [SimpleNamespace(tokens={bytes([n]): 0}) for n in range(len(lengths))]
    return [
        SimpleNamespace(name=f"m{n}", tokenizer=SimpleNamespace(vocabulary=vocabulary, bytes_per_token=length))
        for n, (vocabulary, length) in enumerate(zip(made, lengths, strict=True))
    ]


@pytest.mark.parametrize(
    ("lengths", "main", "name", "why"),
    [
        ((4.0, 4.2), 0, "bytes", "the tokens of 'm0', 4.0 bytes on a sample, are no longer than those of the other"),
        ((4.0, 3.0), 0, "bytes", "are only 1.3 times as long as those of 'm1' (at most 1.6)"),
        ((3.2, 2.0), 0, "bytes", "are only 1.6 times as long as those of 'm1' (at most 1.6)"),
        ((4.0, 2.0), 0, "deepen", "the tokens of 'm0', 4.0 bytes on a sample, are 2.0 times as long as those of 'm1'"),
        ((4.0, 2.0), 1, "bytes", "the tokens of 'm1', 2.0 bytes on a sample, are no longer"),
        ((4.0, 3.9, 1.0), 0, "deepen", "4.0 times as long as those of 'm2' (above 1.6)"),
        ((4.0,), 0, "bytes", "no longer"),
    ],
)
def test_main_with_much_longer_tokens_averages_over_shared_tokens(lengths, main, name, why):
    found, told = choose(fakes(*lengths), main)
    assert found == name
    assert why in told


def test_bytes_need_no_shared_tokens():
    assert choose(fakes(9.0, 1.0, shared=False), 0) == ("bytes", "the members share no token")


@pytest.mark.parametrize("main", [0, 1])
def test_it_answers_as_the_strategy_that_it_has_chosen(folders, tmp_path, main):
    """Also over given texts, and with weights that follow the comparison."""
    letters = tiny.save_gpt2(tmp_path / "letters", tiny.byte_level_of(["ab"], 258), seed=7)
    models, chosen = [folders["beta"], letters], ("deepen", "bytes")[main]
    options = {"main": main, "device": "cpu", "progress": False}
    with pytest.warns(CompatibilityWarning, match="differ much in length"):
        auto, it = (Ensemble.load(models, fusion=fusion, **options) for fusion in ("auto", chosen))
    with auto, it:
        assert auto.info.fusion == "auto"
        assert auto.info.chosen.startswith(f"{chosen}, since the tokens of")
        assert it.info.chosen is None
        assert auto.info.weight_policy == it.info.weight_policy == "context"
        assert (auto.info.anchors, auto.info.limits) == (it.info.anchors, it.info.limits)
        asked = {"max_new_tokens": 12, "ignore_eos": True, "logprobs": 2}
        assert auto.generate(PROMPT, **asked).logprobs == it.generate(PROMPT, **asked).logprobs
        assert auto.score(PROMPT, " jumps over").logprobs == it.score(PROMPT, " jumps over").logprobs
