"""Every benchmark still runs: the smallest measurement of each, without writing results."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    agreement,
    boundaries,
    byte_fusion,
    fidelity,
    fusion,
    given_text,
    healing,
    quality,
    real_pairs,
    retokenisation,
    stories,
)
from benchmarks.byte_reader import ByteReader
from benchmarks.worlds import make_world, real_world
from deepen_core import Ensemble
from deepen_core.config import FusionConfig
from deepen_core.demo import member_paths
from deepen_core.demo.world import questions

TINY = make_world((300, 320), 200, 16)
GIVEN = given_text.Given("The quick brown f", "ox jumps over the lazy dog; läuft über die Straße.")
_CHANGED = "changed to a longer or shorter token"


@pytest.mark.usefixtures("needs_demo")
@pytest.mark.parametrize("strategy", ["deepen, soft rows", "deepen-paper"])
def test_agreement(strategy):
    row = agreement.measure("demo", member_paths(), [q.prompt for q in questions()[:2]], 0, strategy, 1)
    assert row["steps"] > 0
    assert 0 <= row["equal choices"] <= 1


@pytest.mark.usefixtures("needs_demo")
def test_quality():
    assert 0 <= quality.measure(questions()[:3], main=0)["exact match"] <= 1


def test_fusion():
    config = FusionConfig(candidates=32)
    rows = fusion.measure_speed("tiny", TINY, config, repeats=1)
    assert [row["rows"] for row in rows] == [1] * 3 + [16] * 3
    assert fusion.measure_build("tiny", TINY, config)["rows"] == 400
    assert 0 < fusion.measure_generation("tiny", TINY, config, 10)["steps that build"] <= 1
    with torch.enable_grad(), pytest.warns(UserWarning, match="batchmean"):
        assert fusion.measure_reference("tiny", TINY, 1.0)["ratio"] > 0


def test_fidelity():
    rows = fidelity.measure("tiny", TINY, FusionConfig(), 20)
    assert [row["entropy"] for row in rows] == ["low", "mid", "high", "all"]
    assert rows[-1]["steps"] == 60
    assert all(row["mean total variation"] < 0.5 for row in rows)
    assert len(fidelity.sweep(TINY, 20)) == 3 * sum(map(len, fidelity.SWEEPS.values()))
    assert 0.8 < fidelity.sharpness((200,), 16)[0]["self-mass"] < 1
    falling = [row["em"] for row in fidelity.convergence(TINY, 3)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_real_vocabularies_have_a_world():
    world = real_world(("mistral-v1", "gpt-2"), 16)
    assert [len(e) for e in world.embeddings] == [32_000, 50_257]
    assert world.anchors == 21_240
    assert fusion.measure_speed("real", world, FusionConfig(), repeats=1)[0]["ms"] > 0


def test_retokenisation(shared):
    from transformers import AutoTokenizer

    from deepen_core.members.tokenizer import MemberTokenizer

    folder: Path = shared / "models"
    a, b = (MemberTokenizer(AutoTokenizer.from_pretrained(folder / n), n) for n in ("stories260K", "babyllama105"))
    assert retokenisation.listen(a, b, ["Once upon a time there was a dog."])["tokens run / own token"] >= 1


@pytest.mark.usefixtures("shared")
def test_stories():
    assert stories.measure(["Once upon a time there was a little dog."], 1, "deepen")["together"] > 0


@pytest.mark.parametrize("names", [("alpha", "beta"), ("beta", "alpha")])
def test_given_texts_are_scored_as_the_ensemble_scores_them(load, names):
    """One fusion after the other, of a text that is read once: the very sum that `score` comes to."""
    with load(*names, weights="static") as ensemble:
        found = healing.nats(given_text.read(ensemble, GIVEN), healing.ways_to_heal(ensemble))
        score = ensemble.score(GIVEN.prompt, GIVEN.text)
    assert found["as it is"] == pytest.approx(-score.total, abs=1e-3)
    assert len({round(value, 6) for value in found.values()}) == 4


def test_boundaries(pair):
    """The nats inside tokens are a part of all, and only tokens that begin with one another are counted."""
    found = boundaries.measure(pair, [GIVEN])
    assert found.steps == len(pair.score(GIVEN.prompt, GIVEN.text).token_ids) > found.inside > 0
    safe, core = boundaries.rows(found, main="a")
    assert all(safe[name] > 0 for name in boundaries.STRATEGIES)
    assert all(row["main's is right"] + row["the fused one is right"] <= row[_CHANGED] for row in core)
    assert found.changed["main alone"] == 0


def test_real_pairs(pair, monkeypatch):
    monkeypatch.setattr(real_pairs, "beginnings", lambda _kind, count, _size: [GIVEN] * count)
    row = real_pairs.measure(pair, 1, 1, 80, real_pairs.STRATEGIES)
    assert row["code: main"] == row["story: main"] > 0
    assert row["fitted weight"] in real_pairs.WEIGHTS
    assert row["fitted %"] == pytest.approx(row["deepen %"]) or row["fitted weight"] != 0.5


def test_byte_fusion(pair, monkeypatch):
    """Every strategy at every weight, the members alone, and both by the byte."""
    found = byte_fusion.bits(pair, [GIVEN])
    assert {name for name, _ in found} == {*byte_fusion.STRATEGIES, "main", "other"}
    exact = [ByteReader(one, least=0.01).read(GIVEN) for one in alone(pair)]
    assert exact[0].shape == (len(GIVEN.text.encode()), 257)
    ideal = byte_fusion.by_the_byte(exact[:1], exact[1:], [GIVEN])
    kinds = (*byte_fusion.KINDS, *byte_fusion.FITTED_ON)
    row = byte_fusion.row_of(dict.fromkeys(kinds, found), dict.fromkeys(kinds, ideal))
    assert row["main"] == pytest.approx(found["main", ""])
    assert row["bytes, equal %"] == row["bytes, equal, worst kind %"]
    assert (
        row["by the byte, best %"]
        <= row["by the byte, equal %"]
        == pytest.approx(100 * (ideal[0.5] / min(found["main", ""], found["other", ""]) - 1))
    )
    held = {"pair": "alpha + beta", "texts": 3} | row
    monkeypatch.setattr(byte_fusion, "published", lambda _: {"all": [held | {"texts": 2}, held]})
    assert byte_fusion.published_bits(("alpha", "beta"), 3) == dict.fromkeys(kinds, found)


def test_by_the_byte():
    """Each model's distribution counts by its own weight."""
    main, other = np.zeros((2, 257)), np.zeros((2, 257))
    main[:, list(b"ab")], other[:, list(b"ab")] = (0.9, 0.1), (0.2, 0.8)
    found = byte_fusion.by_the_byte([main], [other], [given_text.Given("", "ab")])
    for weight in byte_fusion.WEIGHTS:
        first, second = 0.9**weight * 0.2 ** (1 - weight), 0.1**weight * 0.8 ** (1 - weight)
        expected = -(math.log2(first / (first + second)) + math.log2(second / (first + second))) / 2
        assert found[weight] == pytest.approx(expected)


def alone(ensemble):
    """An ensemble of each member of another one."""
    return [Ensemble.from_members([member]) for member in ensemble._engine.members]
