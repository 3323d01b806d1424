"""Every benchmark still runs: the smallest measurement of each, without writing results."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_parts import written

from benchmarks import (
    agreement,
    boundaries,
    byte_fusion,
    byte_speed,
    commits,
    constraints,
    decoding,
    demo_tasks,
    determinism,
    evaluation_tables,
    fidelity,
    fusion,
    given_text,
    healing,
    precision,
    quality,
    real_pairs,
    real_speed,
    recurrent,
    report,
    retokenisation,
    scoring,
    server,
    stories,
    tasks,
    tracing,
    weights_speed,
)
from benchmarks.byte_reader import ByteReader
from benchmarks.worlds import make_world, real_world
from deepen_core import Ensemble
from deepen_core.config import FusionConfig
from deepen_core.demo import member_paths, write_tasks
from deepen_core.demo.world import questions
from deepen_core.evaluation.items import ChoiceItem, OpenItem
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.task_file import read_task


@pytest.mark.usefixtures("needs_demo")
@pytest.mark.parametrize("strategy", ["deepen, soft rows", "deepen-paper"])
def test_agreement(strategy):
    row = agreement.measure("demo", member_paths(), [q.prompt for q in questions()[:2]], 0, strategy, 1)
    assert row["steps"] > 0
    assert 0 <= row["equal choices"] <= 1


@pytest.mark.usefixtures("needs_demo")
def test_quality():
    assert 0 <= quality.measure(questions()[:3], main=0)["exact match"] <= 1


@pytest.mark.usefixtures("needs_demo")
def test_demo_tasks(tmp_path):
    group = demo_tasks.GROUPS[1]
    tasks = {path.stem: read_task(path, 2) for path in write_tasks(tmp_path / "held-out")}
    others = {path.stem: read_task(path, 3) for path in write_tasks(tmp_path / "validation", "validation")}
    fitted_on = [others[name] for name in group.tasks]
    paths = member_paths(group.members)
    seed = demo_tasks.measure(group, paths, tasks, fitted_on, None, fusions=("deepen", "product"))
    ways = ["ferry-t5 alone", "atlas-gpt2 alone"]
    for name in ("deepen", "product"):
        ways += [name, *(f"{name}, {way}" for way in ("fitted", "fitted perplexity", *Plan.policies))]
        ways += [f"{name}, adaptive, gate {gate}" for gate in (0.5, 0.9)]
    assert seed.keys() == set(ways)
    worse = {way: {"translation": shares["translation"] / 2} for way, shares in seed.items()}
    lines = demo_tasks.spread([seed, worse], group)
    assert {line["way"] for line in lines} == set(ways)
    assert [line["mean"] for line in lines] == sorted((line["mean"] for line in lines), reverse=True)
    for line in lines:
        assert line["highest"] == pytest.approx(100 * seed[line["way"]]["translation"])
        assert line["mean"] == pytest.approx(0.75 * line["highest"])
        assert line["lowest"] == pytest.approx(0.5 * line["highest"])


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("union, fitted 0.6 0.4", "union, fitted"),
        ("deepen-paper, fitted perplexity 0.91 0.091", "deepen-paper, fitted perplexity"),
        ("bytes, fitted perplexity, static 1 0", "bytes, fitted perplexity"),
        ("bytes, adaptive, gate 0.9", "bytes, adaptive, gate 0.9"),
    ],
)
def test_fitted_ways_have_one_name_for_all_seeds(label, expected):
    assert demo_tasks._without_weights(label) == expected


@pytest.mark.usefixtures("needs_demo")
def test_votes_on_the_demo_s_tasks(tmp_path):
    tasks = {path.stem: read_task(path, 1) for path in write_tasks(tmp_path)}
    found = demo_tasks.measure(demo_tasks.GROUPS[0], member_paths(), tasks, [], None, fusions=("product",), votes=2)
    voting = {f"{name} alone, 2 votes" for name in demo_tasks.MEMBERS}
    voting |= {f"{name}, adaptive, 2 votes" for name in demo_tasks.VOTING}
    assert voting | {"vote"} <= found.keys()


TINY = make_world((300, 320), 200, 16)


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


def test_recurrent(shared):
    from transformers import AutoTokenizer

    from deepen_core.members.tokenizer import MemberTokenizer

    (row,) = recurrent.measure_time("LFM2", (24,), 4)
    assert row["main ms"] > 0
    folder: Path = shared / "models"
    a, b = (MemberTokenizer(AutoTokenizer.from_pretrained(folder / n), n) for n in ("babyllama105", "stories260K"))
    found = recurrent.count(a, b, "Once upon a time there was a dog, and a girl.", copies=3)
    assert 0 < found["new"] <= found["run"] < 4


@pytest.mark.usefixtures("shared")
def test_stories():
    assert stories.measure(["Once upon a time there was a little dog."], 1, "deepen")["together"] > 0


GIVEN = given_text.Given("The quick brown f", "ox jumps over the lazy dog; läuft über die Straße.")


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


_CHANGED = "changed to a longer or shorter token"


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


def test_tasks(pair, monkeypatch, tmp_path):
    """Results of one kind are added to those of another, and replaced by newer ones."""
    monkeypatch.setattr("benchmarks.report.RESULTS", tmp_path / "results")
    monkeypatch.setattr(tasks, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tasks, "SETS", tmp_path)
    monkeypatch.setattr(tasks, "_SHOTS", 1)
    for name in tasks.CHOICES:
        for part in ("dev", "test"):
            written(tmp_path / f"{name}-{part}.jsonl", [ChoiceItem(f"{name} {part}?", ("a fox", "a dog"), 1)])
    for name in tasks.OPEN:
        for part in ("dev", "test"):
            items = [OpenItem(f"{name[0]}{part[0]}{number}", ("a",)) for number in range(6 if part == "dev" else 1)]
            written(tmp_path / f"{name}-{part}.jsonl", items)
    found, items = {}, {"choices": 1, "open": 2}
    for kind in ("choices", "open", "choices", "all"):
        plan = tasks.plan(kind, items, 0, ["deepen", "product"], chat=False, votes=0, fit_items=3)
        assert {len(task.items) for task in plan.fitted_on} == {"choices": {1}, "open": {3}, "all": {1, 5}}[kind]
        outcome = pair.evaluate(plan, progress=False)
        found[kind] = tasks.rows(outcome, pair, main="alpha", dtype="float32", form="plain text")
        tasks.add(kind, found[kind], outcome.summary.advice)
    label = {"main": "alpha", "dtype": "float32", "form": "plain text"}
    more, advice = tasks.measure(
        pair,
        tasks.plan("choices", items, 0, ["deepen", "product"], chat=False, votes=0, fit_items=3),
        tmp_path / "kept",
        ["union"],
        **label,
    )
    assert [row["mean"] for row in more] == sorted((row["mean"] for row in more), reverse=True)
    assert sorted(row["way"] for row in more) == sorted([*(row["way"] for row in found["choices"]), "union"])
    assert [row for row in more if row["way"] != "union"] == found["choices"]
    assert advice == next(iter(report.read("tasks")["advice"].values()))
    held = report.read("tasks")
    assert held["choices"] == found["choices"]
    assert held["open"] == found["open"]
    assert held["all"] == found["all"]
    assert len(held["advice"]) == 3
    ways = {row["way"].partition(", fitted")[0] for row in found["all"] if ", fitted perplexity" not in row["way"]}
    assert ways == {"alpha alone", "beta alone", "deepen", "deepen, adaptive", "deepen, perplexity", "deepen, context"}
    assert sum(", fitted perplexity" in row["way"] for row in found["all"]) == 1
    for row in found["all"]:
        assert row["mean"] == pytest.approx(sum(row[name] for name in (*tasks.CHOICES, *tasks.OPEN)) / 7)
        assert [name for name in row if name in tasks.KINDS["all"]] == [*tasks.CHOICES, *tasks.OPEN]
    [fitted] = {row["way"] for row in found["open"] if ", fitted " in row["way"]}
    assert {row["way"] for row in found["open"]} == {
        fitted,
        "alpha alone",
        "beta alone",
        "deepen",
        "deepen, adaptive",
        "deepen, confidence",
        "deepen, adaptive, gate 0.9",
    }
    others = [{**row, "members": "gamma + delta"} for row in found["all"]]
    tasks.add("all", others, "Run gamma alone.")
    tasks.add("all", found["all"][1:], outcome.summary.advice)  # which stands where it stood
    assert report.read("tasks")["all"] == [*found["all"][1:], *others]
    gated = {row["way"]: row["others asked, %"] for kind in found for row in found[kind]}
    assert 0 < gated["deepen, adaptive, gate 0.9"] <= 100
    assert gated["alpha alone"] == ""


@pytest.mark.parametrize("first", ["a + b", "c + d"])
def test_the_readme_has_the_best_that_gains(monkeypatch, first):
    def rows(members, mean, least):
        shares = dict.fromkeys((*tasks.CHOICES, *tasks.OPEN), 50.0)
        ways = ["deepen, fitted 0.5 0.5", "deepen", f"{members[0]} alone", f"{members[-1]} alone"]
        points = [2.5, 2.5, "", -9.0]
        return [
            {"members": members, "way": way, **shares, "mean": mean - (points[1] if p == "" else 0), "points": p}
            | {"from": p and min(p, least), "to": p}
            for way, p in zip(ways, points, strict=True)
        ]

    def table(ensembles):
        every = ensembles.pop(first) + [row for rest in ensembles.values() for row in rest]
        assert every[0]["members"] == first
        monkeypatch.setattr(evaluation_tables, "read", lambda _: {"all": every})
        return evaluation_tables.kinds_table()

    found = table({"a + b": rows("a + b", 60.0, -0.5), "c + d": rows("c + d", 53.0, 0.5)})
    assert "| deepen | 50.0 | 50.0 | 50.0 | 50.0 | 53.0 | +2.5 | +0.5 to +2.5 |" in found  # the other may be chance
    assert "| c alone |" in found
    assert "a alone" not in found
    assert "fitted" not in found
    found = table({"a + b": rows("a + b", 60.0, 0.5), "c + d": rows("c + d", 53.0, 0.5)})
    assert "| 60.0 | +2.5 |" in found
    assert found.count("| a alone |") == 1


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
            shares = decoding.measure_sharing(ensemble, tokenizer, 64, 3)
            first = decoding.measure_first_chunk(ensemble, "Once upon a time", 8, 1)
            gap = decoding.measure_loop_gap(ensemble, ["Once upon", "a time"], 4)
    assert [row["batch"] for row in rows] == [1, 2]
    assert rows[0]["against plain"] > 1
    assert 1 <= shares["ratio"] < 2
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
