"""Every benchmark still runs: the smallest measurement of each, without writing results."""

from pathlib import Path

import pytest
import torch

from benchmarks import agreement, fusion, quality, retokenisation, stories
from benchmarks.worlds import make_world
from deepen_core.config import FusionConfig
from deepen_core.demo import member_paths
from deepen_core.demo.world import questions


@pytest.mark.usefixtures("needs_demo")
@pytest.mark.parametrize("strategy", ["deepen", "deepen-paper"])
def test_agreement(strategy):
    row = agreement.measure("demo", member_paths(), [q.prompt for q in questions()[:2]], 0, strategy, 1)
    assert row["steps"] > 0
    assert 0 <= row["equal choices"] <= 1


@pytest.mark.usefixtures("needs_demo")
def test_quality():
    assert 0 <= quality.measure(questions()[:3], main=0)["exact match"] <= 1


def test_fusion():
    world, config = make_world((300, 320), 200, 16), FusionConfig(candidates=32)
    rows = fusion.measure_speed("tiny", world, config, repeats=1)
    assert [row["rows"] for row in rows] == [1, 16] * 3
    assert fusion.measure_build(world, config)["rows"] == 400
    with torch.enable_grad(), pytest.warns(UserWarning, match="batchmean"):
        assert fusion.measure_reference(world, 1.0)["ms"] > 0
    assert all(row["mean total variation"] < 0.5 for row in fusion.measure_agreement(world, config, 20))


def test_retokenisation(shared):
    from transformers import AutoTokenizer

    from deepen_core.members.tokenizer import MemberTokenizer

    folder: Path = shared / "models"
    a, b = (MemberTokenizer(AutoTokenizer.from_pretrained(folder / n), n) for n in ("stories260K", "babyllama105"))
    assert retokenisation.listen(a, b, ["Once upon a time there was a dog."])["tokens run / own token"] >= 1


@pytest.mark.usefixtures("shared")
def test_stories():
    assert stories.measure(["Once upon a time there was a little dog."], 1, "deepen")["together"] > 0
