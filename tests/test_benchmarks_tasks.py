"""Benchmarks of tasks run on tiny models, and publish what the evaluations found."""

import pytest
from evaluation_parts import written

from benchmarks import demo_tasks, evaluation_tables, report, tasks
from deepen_core.demo import member_paths, write_tasks
from deepen_core.evaluation.items import ChoiceItem, OpenItem
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.task_file import read_task


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
        ways += [f"{name}, context, gate {gate}" for gate in (0.5, 0.9)]
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
    voting |= {f"{name}, context, 2 votes" for name in demo_tasks.VOTING}
    assert voting | {"vote"} <= found.keys()


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
        assert {len(task.items) for task in plan.fitted_on} == {"choices": {1}, "open": {5}, "all": {1, 5}}[kind]
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
        "deepen, context",
        "deepen, context, gate 0.9",
    }
    others = [{**row, "members": "gamma + delta"} for row in found["all"]]
    tasks.add("all", others, "Run gamma alone.")
    tasks.add("all", found["all"][1:], outcome.summary.advice)  # which stands where it stood
    assert report.read("tasks")["all"] == [*found["all"][1:], *others]
    gated = {row["way"]: row["others asked, %"] for kind in found for row in found[kind]}
    assert 0 < gated["deepen, context, gate 0.9"] <= 100
    assert gated["alpha alone"] == ""


@pytest.mark.parametrize("first", ["a + b", "c + d"])
def test_the_readme_has_the_best_that_gains(monkeypatch, first):
    def rows(members, mean, least):
        shares = dict.fromkeys((*tasks.CHOICES, *tasks.OPEN), 50.0)
        ways = ["deepen, context, 5 votes", "deepen, fitted 0.5 0.5", "deepen", "deepen, context"]
        ways += [f"{members[0]} alone", f"{members[-1]} alone"]
        points = [3.0, 2.5, 2.5, 2.0, "", -9.0]
        return [
            {
                "members": members,
                "way": way,
                **shares,
                "mean": mean + ("votes" in way) - (2.5 if p == "" else 0),
                "points": p,
            }
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
    assert found.count("| deepen, context (the default) |") == 1
    found = table({"a + b": rows("a + b", 60.0, 0.5), "c + d": rows("c + d", 53.0, 0.5)})
    assert "| 60.0 | +2.5 |" in found
    assert found.count("| a alone |") == 1
    older = [row for row in rows("a + b", 60.0, 0.5) if row["way"] != "deepen, context"]
    assert "| c alone |" in table({"a + b": older, "c + d": rows("c + d", 53.0, 0.5)})
    usual = [row for row in rows("a + b", 60.0, 0.5) if row["way"] not in ("deepen", "deepen, fitted 0.5 0.5")]
    found = table({"a + b": usual, "c + d": rows("c + d", 53.0, -0.5)})
    assert [found.count(way) for way in ("(the default)", "| deepen", "| a alone |")] == [1, 1, 1]
