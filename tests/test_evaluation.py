"""What an ensemble is worth against its members: scores of items, and what is kept of them."""

import json
from dataclasses import replace

import pytest
from evaluation_parts import ITEMS, TASK
from table_member import TableMember
from tiny import CORPUS, byte_level

from deepen_core import Ensemble
from deepen_core.errors import ChatTemplateError, EvaluationError
from deepen_core.evaluation import likelihood
from deepen_core.evaluation.items import Task
from deepen_core.evaluation.likelihood import chosen
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.settings import Setting, equal
from deepen_core.evaluation.strategies import Strategies
from deepen_core.fusion.main_alone import MainAlone
from deepen_core.members.base import MemberDescription


def scores_of(ensemble, plan, folder=None):
    """Runs a plan, and returns the outcome and the scores in the folder."""
    outcome = ensemble.evaluate(plan, output=folder, progress=False)
    lines = (folder / "scores.jsonl").read_text(encoding="utf-8").split("\n")
    return outcome, [json.loads(line) for line in lines if line]


def test_scores_are_those_of_ensembles(pair, load, tmp_path):
    """Each setting of each main, against an ensemble that was loaded with it."""
    plan = Plan([TASK], gates=[], mains=[0, 1])
    outcome, held = scores_of(pair, plan, tmp_path / "out")
    assert [line["by"] for line in held] == ["alpha"] * 3 + ["beta"] * 3
    items = {item.question: item for item in ITEMS}
    for main in (0, 1):
        found = [line for line in held if line["by"] == ("alpha", "beta")[main]]
        for fusion, weights in (
            ("deepen", "static"),
            ("product", "adaptive"),
            ("union", "static"),
            ("deepen", "consistency"),
            ("product", "context"),
        ):
            label = Setting(fusion, equal(2) if weights == "static" else weights).label
            with load("alpha", "beta", main=main, fusion=fusion, weights=weights) as ensemble:
                for line, item in zip(found, items.values(), strict=True):
                    scores = ensemble.score(f"Question: {item.question}\nAnswer:", [f" {c}" for c in item.choices])
                    assert line["bytes"] == [len(f" {c}".encode()) for c in item.choices]
                    assert line["together"][label] == pytest.approx([s.total for s in scores], abs=1e-3)
                    for place, name in enumerate(("alpha", "beta")):
                        own = [s.members[place].total for s in scores]
                        assert line["alone"][name] == pytest.approx(own, abs=1e-3)
    rows = {(row.label, row.main): row for row in outcome.summary.rows}
    assert len(rows) == 3 + 2 * 14
    for line in [row for row in outcome.summary.rows if row.main == "beta" and row.label == "union"]:
        label = Setting("union", equal(2)).label
        right = [
            chosen(one["together"][label], one["bytes"]) == item.answer
            for one, item in zip(held[3:], ITEMS, strict=True)
        ]
        assert line.shares == {"animals": sum(right) / 3}


def test_a_conversation_is_asked_for(pair, load, tmp_path):
    _, held = scores_of(pair, Plan([TASK], fusions=["product"], policies=[], chat=True), tmp_path)
    with load("alpha", "beta", fusion="product", weights="static") as ensemble:
        for line, item in zip(held, ITEMS, strict=True):
            asked = [{"role": "user", "content": item.question}]
            scores = ensemble.score(asked, list(item.choices))
            assert line["together"]["product 0.5 0.5"] == pytest.approx([s.total for s in scores], abs=1e-3)
    plan = Plan([TASK], chat=True)
    with load("alpha", "gamma") as ensemble, pytest.raises(ChatTemplateError, match="'gamma' has no chat template"):
        ensemble.evaluate(plan, progress=False)


def test_an_item_that_is_there_twice_counts_twice(pair):
    task = Task("twice", (ITEMS[0], ITEMS[1], ITEMS[0]))
    outcome = pair.evaluate(Plan([task], fusions=["product"], policies=[], gates=[]), progress=False)
    assert outcome.summary.items == {"twice": 3}


def test_strategies_are_built_once_for_each_main(pair):
    """And not those that answer requests meanwhile."""
    strategies = Strategies(pair._engine.members)
    found = strategies.get("deepen", 0)
    assert found is strategies.get("deepen", 0)
    assert found is not pair._engine.fusion
    assert found is not strategies.get("deepen", 1)
    assert type(strategies.get("deepen", 1)) is type(pair._engine.fusion)
    assert isinstance(strategies.get(MainAlone.name, 1), MainAlone)


def test_members_that_are_not_there(pair):
    with pytest.raises(EvaluationError, match="There is no member 2 to be main: there are 2, from 0"):
        pair.evaluate(Plan([TASK], mains=[2]), progress=False)
    with pytest.raises(EvaluationError, match="There is nothing to fit on"):
        pair.fit_weights([])


def test_other_requests_go_on_meanwhile(load):
    with load("alpha", "beta") as ensemble:
        expected = ensemble.generate("The quick", max_new_tokens=40, ignore_eos=True).token_ids
        handle = ensemble.submit("The quick", max_new_tokens=40, ignore_eos=True)
        ensemble.evaluate(Plan([TASK], mains=[1]), progress=False)
        assert handle.result().token_ids == expected


class TestAFolder:
    def test_goes_on_where_it_was_stopped(self, pair, tmp_path, monkeypatch):
        plan = Plan([TASK], policies=[], gates=[])
        whole, _ = scores_of(pair, plan, tmp_path / "whole")
        score = likelihood.score_items

        def stopped(*args, **options):
            yield next(score(*args, **options))
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("deepen_core.evaluation.evaluation.score_items", stopped)
            with pytest.raises(KeyboardInterrupt):
                pair.evaluate(plan, output=tmp_path / "part", progress=False)
        place = tmp_path / "part" / "scores.jsonl"
        with place.open("a", encoding="utf-8") as file:
            file.write('\n{"task": "animals", "by": "al')  # the process was killed while it wrote
        seen = []
        monkeypatch.setattr(
            "deepen_core.evaluation.evaluation.score_items",
            lambda reader, items, *args, **options: seen.append(items) or score(reader, items, *args, **options),
        )
        assert pair.evaluate(plan, output=tmp_path / "part", progress=False) == whole
        assert seen == [list(ITEMS[1:])]
        assert pair.evaluate(plan, output=tmp_path / "part", progress=False) == whole
        assert len(seen) == 1
        more = replace(plan, policies=["confidence"])
        assert len(pair.evaluate(more, output=tmp_path / "part", progress=False).summary.rows) == 10
        assert seen[1:] == [list(ITEMS)]

    def test_holds_one_evaluation(self, pair, load, tmp_path):
        pair.evaluate(Plan([TASK], policies=[]), output=tmp_path, progress=False)
        with load("alpha", "gamma") as other, pytest.raises(EvaluationError, match=r"members was \['alpha', 'beta'\]"):
            other.evaluate(Plan([TASK], policies=[]), output=tmp_path, progress=False)
        with pytest.raises(EvaluationError, match="chat was False and is True"):
            pair.evaluate(Plan([TASK], policies=[], chat=True), output=tmp_path, progress=False)

    def test_of_another_model_of_the_same_name(self, tmp_path):
        """Or of one that was trained further."""
        plan = Plan([TASK], fusions=["union"], policies=[], gates=[])
        for count in (4, 2):
            tables = [TableMember(n, byte_level(), CORPUS[:count]) for n in ("first", "second")]
            tables[0].describe = lambda count=count: MemberDescription("Table", count)
            with Ensemble.from_members(tables, fusion="union") as ensemble:
                if count == 4:
                    ensemble.evaluate(plan, output=tmp_path, progress=False)
                else:
                    with pytest.raises(EvaluationError, match="models was"):
                        ensemble.evaluate(plan, output=tmp_path, progress=False)

    def test_of_weights_by_an_older_formula(self, pair, tmp_path, monkeypatch):
        """What they made right is not what today's make right."""
        plan = Plan([TASK], fusions=["product"], policies=["perplexity"], gates=[])
        with monkeypatch.context() as patch:
            patch.setattr("deepen_core.evaluation.run.WEIGHTS_VERSION", 1)
            pair.evaluate(plan, output=tmp_path, progress=False)
        with pytest.raises(EvaluationError, match="version of the weights was 1 and is"):
            pair.evaluate(plan, output=tmp_path, progress=False)

    def test_that_was_killed_in_the_middle_of_a_character(self, pair, tmp_path):
        plan = Plan([TASK], fusions=["product"], policies=[], gates=[])
        whole = pair.evaluate(plan, output=tmp_path, progress=False)
        with (tmp_path / "scores.jsonl").open("ab") as file:
            file.write("你".encode()[:2])
        assert pair.evaluate(plan, output=tmp_path, progress=False) == whole
        (tmp_path / "run.json").write_text("")
        with pytest.raises(EvaluationError, match=r"run\.json cannot be read"):
            pair.evaluate(plan, output=tmp_path, progress=False)

    def test_goes_on_with_other_gates(self, pair, tmp_path):
        one = Plan([Task("animals", ITEMS[:1])], fusions=["product"], policies=[], gates=[0.02])
        pair.evaluate(one, output=tmp_path, progress=False)
        outcome = pair.evaluate(replace(one, tasks=[TASK], gates=[0.03]), output=tmp_path, progress=False)
        assert outcome.asked["alpha"].keys() == {"0.03"}

    def test_that_cannot_be_made(self, pair, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(EvaluationError, match="cannot be made"):
            pair.evaluate(Plan([TASK]), output=tmp_path / "file" / "x", progress=False)
