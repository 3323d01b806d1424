"""Open questions that are answered by votes over sampled answers, in evaluations."""

import json

import pytest
from evaluation_parts import ITEMS, QUESTIONS

from deepen_core.errors import EvaluationError
from deepen_core.evaluation.evaluation import Evaluation
from deepen_core.evaluation.generation import Samples
from deepen_core.evaluation.items import CodeItem, OpenItem, Task
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.votes import Votes

MATHS = (OpenItem("1 + 1?", ("2",), "1 + 1 = 2"), OpenItem("2 + 2?", ("4",), "2 + 2 = 4"))
CODE = CodeItem("def f(x):\n", "def check(candidate):\n    pass\n", "f")
SHORT = {"fusions": ["product"], "policies": [], "gates": []}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Answers of a few tokens."""
    monkeypatch.setattr(OpenItem, "max_new_tokens", 6)
    monkeypatch.setattr(CodeItem, "max_new_tokens", 6)


def held_in(folder):
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def test_samples_are_those_of_ensembles(pair, load, tmp_path):
    """Each member alone, and each strategy with each main, against an ensemble that was loaded with it."""
    plan = Plan([Task("q", QUESTIONS)], **SHORT, mains=[0, 1], votes=3, vote_temperature=1.5)
    pair.evaluate(plan, output=tmp_path, progress=False)
    found = {}
    for line in held_in(tmp_path):
        if "texts" in line:
            found.setdefault(line["by"], []).append(line)
    ways = {"alpha alone": {"weights": [1, 0]}, "beta alone": {"weights": [0, 1], "main": 1}}
    ways |= {f"product context, main {name}": {"main": n} for n, name in enumerate(("alpha", "beta"))}
    assert found.keys() == {f"{way}, sampled at 1.5" for way in ways}
    for way, options in ways.items():
        with load("alpha", "beta", fusion="product", **options) as ensemble:
            for item, line in zip(QUESTIONS, found[f"{way}, sampled at 1.5"], strict=True):
                prompt, sampled = item.prompt([], chat=False), {"temperature": 1.5, "max_new_tokens": 6, "stop": ["\n"]}
                answers = [ensemble.generate(prompt, **sampled, seed=n, logprobs=0) for n in range(3)]
                assert line["texts"] == {str(n): answer.text for n, answer in enumerate(answers)}
                for n, answer in enumerate(answers):
                    length = sum(len(token.token) for token in answer.logprobs)
                    value = sum(token.logprob for token in answer.logprobs) / max(1, length)
                    assert line["nats"][str(n)] == pytest.approx(value, abs=1e-5)


def test_more_votes_go_on_from_those_that_are_there(pair, tmp_path, monkeypatch):
    task, asked = Task("q", QUESTIONS), []
    from deepen_core.evaluation import evaluation

    sample_items = evaluation.sample_items

    def spy(decoder, call, wanted, *more, **options):
        asked.append([list(seeds) for _, seeds in wanted])
        return sample_items(decoder, call, wanted, *more, **options)

    monkeypatch.setattr(evaluation, "sample_items", spy)
    plans = {votes: Plan([task], **SHORT, votes=votes, vote_temperature=1.5) for votes in (2, 5, 3)}
    outcomes = {v: pair.evaluate(plan, output=tmp_path / "out", progress=False).summary for v, plan in plans.items()}
    assert asked == [[[0, 1]] * 2] * 3 + [[[2, 3, 4]] * 2] * 3
    for votes, plan in plans.items():
        assert pair.evaluate(plan, output=tmp_path / f"{votes}", progress=False).summary == outcomes[votes]
    many = Plan([task], **SHORT, votes=5, vote_temperature=1.5, together=3)
    assert pair.evaluate(many, output=tmp_path / "batches", progress=False).summary == outcomes[5]


def test_rows_and_tasks_that_cannot_be_voted_on(pair, monkeypatch):
    monkeypatch.setattr(Votes, "_is_right", lambda self, item, sources: item is QUESTIONS[0])
    tasks = [Task("choices", ITEMS), Task("open", QUESTIONS), Task("code", (CODE,))]
    plan = Plan(tasks, **SHORT, votes=2, vote_temperature=1.5)
    rows = {row.label: row.shares for row in pair.evaluate(plan, progress=False).summary.rows}
    asking = {row.label: row.options for row in pair.evaluate(plan, progress=False).summary.rows}
    assert asking["product, context, 2 votes"] == f"{asking['product, context']} --votes 2 --temperature 1.5"
    assert asking["alpha alone, 2 votes"] == asking["alpha alone"] == ""
    voting = ("alpha alone", "beta alone", "product, context")
    assert rows.keys() == {"product"} | {f"{label}{votes}" for label in voting for votes in ("", ", 2 votes")}
    for label in voting:
        with_votes, without = rows[f"{label}, 2 votes"], rows[label]
        assert {**with_votes, "open": 0} == {**without, "open": 0}
        assert with_votes["open"] == 0.5
    plan = Plan(tasks[:2], **SHORT, votes=2, vote_temperature=1.5)
    rows = {row.label: row.shares for row in pair.evaluate(plan, progress=False).summary.rows}
    without = {row.label: row.shares for row in pair.evaluate(Plan(tasks[:1], **SHORT), progress=False).summary.rows}
    assert rows["vote"] == {**without["vote"], "open": 0.5}


def voting_of(sources, items, count):
    """The rights of made-up samples."""

    class Made(Evaluation):
        def __init__(self):
            self.chat = False
            self._given = iter(sources)

        def samples(self, *_, seeds, temperature):
            assert (list(seeds), temperature) == (list(range(count)), 0.7)
            return next(self._given)

    votes, task = Votes(Made(), count, 0.7), Task("t", items)
    for number in range(len(sources)):
        votes.add((f"m{number}", ""), None, task, None, None, "by")
    others = {(f"m{number}", ""): {"other": [1.0], "t": [0.0]} for number in range(len(sources))}
    return votes.rows(others), votes.of_members()


def samples(*texts, nats=None):
    seeds = [str(n) for n in range(len(texts))]
    return Samples(dict(zip(seeds, texts, strict=True)), dict(zip(seeds, nats or [0.0] * len(texts), strict=True)))


def test_majorities():
    one = [samples("It is 2.", "3", "2", "9", "9"), samples("4", "5", "5", "4", "4")]
    other = [samples("3", "3", "1"), samples("x", "four 4", "?")]
    rows, together = voting_of([one, other], MATHS, 3)
    assert rows == {
        ("m0, 3 votes", ""): {"other": [1.0], "t": [1.0, 0.0]},
        ("m1, 3 votes", ""): {"other": [1.0], "t": [0.0, 1.0]},
    }
    assert together == {"t": [0.0, 1.0]}
    rows, together = voting_of([[samples("A dog", "the dog!", "dogs")]], QUESTIONS[:1], 3)
    assert rows["m0, 3 votes", ""]["t"] == together["t"] == [1.0]


def test_the_likelier_of_equal_answers_counts():
    for nats, right in (([-1.0, -2.0], 1.0), ([-2.0, -1.0], 0.0)):
        assert voting_of([[samples("2", "3", nats=nats)]], MATHS[:1], 2)[1] == {"t": [right]}
    empty = samples("", "the dog", nats=[0.0, -5.0])
    assert voting_of([[empty]], QUESTIONS[:1], 2)[1] == {"t": [1.0]}


def test_without_votes_nothing_is_sampled(pair, tmp_path):
    pair.evaluate(Plan([Task("q", QUESTIONS)], **SHORT), output=tmp_path, progress=False)
    assert not [line for line in held_in(tmp_path) if "texts" in line]


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ({"votes": -1}, "-1 votes at temperature 0.7"),
        ({"votes": 2, "vote_temperature": 0.0}, "2 votes at temperature 0: give a number from 0, and a temperature"),
        ({"votes": 2, "vote_temperature": float("nan")}, "2 votes at temperature nan"),
        ({"votes": 2, "tasks": [Task("code", (CODE,))]}, "nothing for 2 votes: no task has open questions"),
        ({"votes": 2, "tasks": [Task("mixed", (CODE, QUESTIONS[0]))]}, "nothing for 2 votes"),
    ],
)
def test_what_cannot_be_is_refused(plan, problem):
    with pytest.raises(EvaluationError, match=problem):
        Plan(**{"tasks": [Task("q", QUESTIONS)], **plan}).check()
