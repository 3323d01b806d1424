"""Benchmarks of speed and precision run on tiny models."""

import warnings
from pathlib import Path

import pytest
import torch

from benchmarks import (
    byte_speed,
    commits,
    constraints,
    decoding,
    determinism,
    given_text,
    healing,
    precision,
    real_speed,
    recurrent,
    scoring,
    server,
    tracing,
    weights_speed,
)
from deepen_core import Ensemble


def test_recurrent(shared):
    from transformers import AutoTokenizer

    from deepen_core.members.tokenizer import MemberTokenizer

    (row,) = recurrent.measure_time("LFM2", (24,), 4)
    assert row["main ms"] > 0
    folder: Path = shared / "models"
    a, b = (MemberTokenizer(AutoTokenizer.from_pretrained(folder / n), n) for n in ("babyllama105", "stories260K"))
    found = recurrent.count(a, b, "Once upon a time there was a dog, and a girl.", copies=3)
    assert 0 < found["new"] <= found["run"] < 4


def test_determinism(pair, monkeypatch):
    monkeypatch.setattr(determinism, "PROMPTS", ["The dog", "A fox and", "The quick brown"])
    row = determinism.measure(pair, 6)
    assert row["answers"] == 3
    assert row["other tokens, deterministic"] == row["other bits, deterministic"] == 0
    assert row["time"] > 0


def test_scoring(pair, monkeypatch):
    monkeypatch.setattr(scoring, "whole_texts", lambda _kind, number: ["The dog sleeps; the quick fox jumps."] * number)
    row = scoring.measure(pair, scoring.long_text(pair, 40), 1)
    assert row["tokens"] >= 40
    assert row["ratio"] > 0
    assert row["off"] < 1e-4


@pytest.mark.parametrize("fusion", byte_speed.FUSIONS)
def test_byte_speed(load, fusion):
    with load("alpha", "beta", fusion=fusion) as ensemble:
        found = byte_speed.measure(ensemble, 8)
    assert min(found["new"], found["warm"]) > 1
    assert min(found["prepared s"], found["batch"]) > 0


def test_real_speed(load):
    with load("alpha", "beta") as ensemble:
        found = real_speed.steps(ensemble, 8)
        plain = [member.model for member in ensemble._engine.members]
        found["of transformers"] = real_speed.first_token_over_transformers(ensemble, plain, real_speed.PROMPTS)
    assert all(ratio > 1 for ratio in found.values())


@pytest.mark.parametrize(("weights", "runs"), [("adaptive", 100), ("perplexity:1,1e-40", 0)])
def test_weights_speed(load, monkeypatch, weights, runs):
    """Each is asked each prompt once: what is known of one makes it faster the next time."""
    prompts, asked, generate = ["The dog", "A fox and", "The cat", "It was"], [], Ensemble.generate

    def logged(ensemble, prompt, **options):
        asked.extend([prompt] if isinstance(prompt, str) else prompt)
        return generate(ensemble, prompt, **options)

    monkeypatch.setattr(Ensemble, "generate", logged)
    with load("alpha", "beta", weights=weights) as ensemble:
        found = weights_speed.compared(ensemble, prompts, 4)
    assert sorted(asked) == sorted(2 * prompts)
    assert found.pop("other one runs, %") == runs
    assert all(ratio > 0 for ratio in found.values())


@pytest.mark.slow
@pytest.mark.usefixtures("needs_demo")
def test_commits_are_measured_alike(tmp_path):
    """This tree against itself, as `run` starts it."""
    found = [commits.run(commits.ROOT, tmp_path, 1) for _ in range(2)]
    assert len(found[0]) == 4
    assert [row["answers"] for row in found[0]] == [row["answers"] for row in found[1]]
    assert len({row["answers"] for row in found[0]}) == 4


def test_conversations_are_given_too(pair):
    given = given_text.Given([{"role": "user", "content": "Hello"}], "Good day.")
    [steps] = given_text.read(pair, given, limit=2)
    assert len(steps.token_ids) == 2
    assert not steps.heard(1)[0].cut


def test_places_at_which_a_prompt_may_end():
    import random

    text = "x" * 60 + " words, and\nmore words in one text that is long enough, so that some of its places may be cut."
    found = healing.cuts(text, random.Random(0))
    assert set(found) == {"in a word", "after a word", "after a blank", "after a newline", "after a mark"}
    assert text[found["after a newline"] - 1] == "\n"


def test_precision(pair):
    assert precision.tokens_per_second(pair, 2) > 0


@pytest.mark.slow
def test_decoding(shared, tmp_path):
    from argparse import Namespace

    paths = decoding.make_members(tmp_path, width=64, layers=1)
    tokenizer = decoding.tokenizers()[0]
    given = Namespace(batches=[1, 2], tokens=4, reference_tokens=2, repeats=1, device="cpu")
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = decoding.ReferenceLoop(paths, "cpu")
        with Ensemble.load(paths, progress=False, device="cpu") as ensemble:
            rows = decoding.measure(ensemble, reference, paths, 32, given)
            with Ensemble.load(paths, weights="adaptive", progress=False, device="cpu") as other:
                shares = decoding.measure_sharing(other, tokenizer, 64, 3)
            read = decoding.measure_sharing(ensemble, tokenizer, 64, 3)
            first = decoding.measure_first_chunk(ensemble, "Once upon a time", 8, 1)
            gap = decoding.measure_loop_gap(ensemble, ["Once upon", "a time"], 4)
    assert [row["batch"] for row in rows] == [1, 2]
    assert rows[0]["against plain"] > 1
    assert 1 <= shares["ratio"] < 2
    assert 1 <= read["ratio"] < 2
    assert (shares["weights"], read["weights"]) == ("adaptive", "context")
    assert 0 < first["of the whole"] <= 1
    assert gap["largest gap ms"] > 0


@pytest.mark.usefixtures("needs_demo")
def test_constraints():
    with Ensemble.demo() as ensemble:
        rows = [constraints.measure(ensemble, ["Once"] * 2, name, 6, 1) for name in constraints.CONSTRAINTS]
    assert all(0 < row["share of time"] < 1 and row["mask ms a token"] > 0 for row in rows)


@pytest.mark.usefixtures("shared")
def test_constraints_over_a_real_vocabulary():
    row = constraints.measure_vocabulary("mistral-v1", "json_schema", 10)
    assert (row["tokens"], row["later start ms"] < row["first start ms"]) == (32_000, True)
    assert 0 < row["median"] <= row["largest"]


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.usefixtures("needs_demo")
def test_server():
    with Ensemble.demo() as ensemble:
        rows = server.measure(ensemble, clients=2, tokens=3, repeats=1)
    assert [row["answers"].partition(",")[0] for row in rows] == ["whole", "streamed", "first token"]
    assert all(row["ratio"] > 0 for row in rows)


def test_tracing(pair):
    row = tracing.measure(pair, "two", batch=2, tokens=4, repeats=2)
    assert {"off", "on", "on, and read"} < row.keys()
    assert all(row[kind] > 0 for kind in ("off", "on", "on, and read", "ms a step"))
    assert pair.generate("x", max_new_tokens=2, trace=True).trace.steps  # the code is back
