"""What an ensemble is worth against its members: scores of items, what is kept of them, weights, and what to run."""

import json
import math
import random
from dataclasses import replace

import pytest
from amounts import examples
from cli_parts import run as deepen
from hypothesis import given, settings
from hypothesis import strategies as st
from table_member import TableMember
from tiny import CORPUS, byte_level, sentencepiece_bpe

from deepen_core import Ensemble
from deepen_core.errors import ChatTemplateError, ConfigurationError, EvaluationError
from deepen_core.evaluation import likelihood
from deepen_core.evaluation.evaluation import rights, rights_of_members
from deepen_core.evaluation.fitting import FittedWeights, best, bits_a_byte, candidates
from deepen_core.evaluation.items import ChoiceItem, OpenItem, Task, TextItem
from deepen_core.evaluation.likelihood import ChoiceScores, chosen, voted
from deepen_core.evaluation.run import Plan
from deepen_core.evaluation.settings import Setting, equal, grid_of_weights
from deepen_core.evaluation.statistics import paired_difference
from deepen_core.evaluation.summary import summarised
from deepen_core.evaluation.task_file import read_task
from deepen_core.members.base import MemberDescription

ITEMS = (
    ChoiceItem("What jumps?", ("the fox", "the lazy dog", "a girl"), 0),
    ChoiceItem("Who sleeps?", ("the quick brown fox", "the dog"), 1),
    ChoiceItem("你好?", ("世界", "hello there", "x"), 2),
)
TASK = Task("animals", ITEMS)
QUESTIONS = (OpenItem("Who sleeps?", ("The dog",)), OpenItem("What jumps?", ("fox", "a fox")))


def written(place, items):
    lines = [json.dumps(vars(item), ensure_ascii=False) for item in items]
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


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
        for fusion, weights in (("deepen", None), ("product", "adaptive"), ("union", None), ("deepen", "consistency")):
            label = Setting(fusion, weights or equal(2)).label
            with load("alpha", "beta", main=main, fusion=fusion, weights=weights) as ensemble:
                for line, item in zip(found, items.values(), strict=True):
                    scores = ensemble.score(f"Question: {item.question}\nAnswer:", [f" {c}" for c in item.choices])
                    assert line["bytes"] == [len(f" {c}".encode()) for c in item.choices]
                    assert line["together"][label] == pytest.approx([s.total for s in scores], abs=1e-3)
                    for place, name in enumerate(("alpha", "beta")):
                        own = [s.members[place].total for s in scores]
                        assert line["alone"][name] == pytest.approx(own, abs=1e-3)
    rows = {(row.label, row.main): row for row in outcome.summary.rows}
    assert len(rows) == 3 + 2 * 9
    for line in [row for row in outcome.summary.rows if row.main == "beta" and row.label == "union"]:
        label = Setting("union", equal(2)).label
        right = [
            chosen(one["together"][label], one["bytes"]) == item.answer
            for one, item in zip(held[3:], ITEMS, strict=True)
        ]
        assert line.shares == {"animals": sum(right) / 3}


def test_a_conversation_is_asked_for(pair, load, tmp_path):
    _, held = scores_of(pair, Plan([TASK], fusions=["product"], policies=[], chat=True), tmp_path)
    with load("alpha", "beta", fusion="product") as ensemble:
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
        more = replace(plan, policies=["adaptive"])
        assert len(pair.evaluate(more, output=tmp_path / "part", progress=False).summary.rows) == 8
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


class TestWeights:
    def test_grids(self):
        assert grid_of_weights(2, 4) == [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]
        for members in (2, 3, 4):
            found = candidates("deepen", members)
            assert found[0].weights == equal(members)
            assert len(set(found)) == len(found)
            assert all(sum(s.weights) == pytest.approx(1) and sum(w > 0 for w in s.weights) > 1 for s in found)

    def test_the_best_of_some(self):
        """Right answers first, then how likely they are, then the first."""
        first, second, third = (Setting("deepen", w) for w in ((0.5, 0.5), (0.3, 0.7), (0.7, 0.3)))
        labels = [s.label for s in (first, second, third)]
        rows = ([[-1, -2], [-1, -2], [-2, -1]], [[-3, -4], [-2, -5], [-9, -1]])
        items = tuple(ChoiceItem("x", ("a", "b"), 0) for _ in rows)
        scores = [ChoiceScores([1, 1], {}, dict(zip(labels, row, strict=True))) for row in rows]
        tasks = [(Task("x", items), scores)]
        assert best(tasks, [first, second, third], "score") == (second, 1.0)
        assert best(tasks, [first, third], "score") == (first, 1.0)
        assert best(tasks, [third, first], "likelihood") == (first, pytest.approx(2 / math.log(2)))
        assert bits_a_byte(*tasks[0], second) == pytest.approx(1.5 / math.log(2))
        with pytest.raises(EvaluationError, match="y has texts without choices: fit by likelihood"):
            best([(Task("y", (TextItem("a", "b"),)), scores[:1])], [first], "score")

    @pytest.mark.parametrize("fusion", ["deepen", "product"])
    def test_favour_who_knows_more(self, fusion, tmp_path):
        """Of two members that have met different texts, on the texts of one."""
        tables = TableMember("first", byte_level(), CORPUS[:4]), TableMember("second", sentencepiece_bpe(), CORPUS[4:7])
        for known, texts in enumerate((CORPUS[:4], CORPUS[4:7])):
            place = written(tmp_path / f"{known}.jsonl", [TextItem(text[:20], text[20:]) for text in texts])
            with Ensemble.from_members(tables, fusion=fusion) as ensemble:
                found = ensemble.fit_weights(place, by="likelihood", progress=False)
                own = [ensemble.score(text[:20], text[20:]) for text in texts]
            assert found.weights[known] > 0.5
            assert found.value < found.equal_value
            assert found.members == ["first", "second"]
            equal_bits = -sum(s.total / s.bytes for s in own) / len(own) / math.log(2)
            assert found.equal_value == pytest.approx(equal_bits, abs=1e-4)
            with Ensemble.from_members(tables, fusion=fusion, weights=found.weights) as ensemble:
                own = [ensemble.score(text[:20], text[20:]) for text in texts]
            assert found.value == pytest.approx(-sum(s.total / s.bytes for s in own) / len(own) / math.log(2), abs=1e-4)

    def test_are_saved_and_loaded(self, tmp_path):
        fit = FittedWeights(["a", "b"], "a", "deepen", [0.25, 0.75], "score", ["arc"], 0.5, 0.25)
        fit.save(tmp_path / "w.json")
        assert FittedWeights.load(tmp_path / "w.json") == fit
        for text in ("{", "[]", '{"members": []}'):
            (tmp_path / "w.json").write_text(text)
            with pytest.raises(EvaluationError, match="does not hold fitted weights"):
                FittedWeights.load(tmp_path / "w.json")

    def test_of_options_of_its_own(self, load, tmp_path):
        place = written(tmp_path / "x.jsonl", ITEMS)
        message = r"has options of its own \(custom \(deepen\)\)"
        with load("alpha", "beta", fusion={"power": 0.7}) as own, pytest.raises(ConfigurationError, match=message):
            own.fit_weights(place)


@settings(max_examples=examples(30), deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(40, 200))
def test_intervals(seed, count):
    """Against the normal approximation."""
    drawn = random.Random(seed)
    tasks = {name: ([], []) for name in ("one", "two")}
    for found in tasks.values():
        for _ in range(count):
            found[0].append(float(drawn.random() < 0.6))
            found[1].append(float(drawn.random() < 0.5))
    one, other = ({name: found[n] for name, found in tasks.items()} for n in (0, 1))
    off = paired_difference(one, other)
    variance = mean = 0.0
    for a, b in tasks.values():
        gaps = [x - y for x, y in zip(a, b, strict=True)]
        centre = sum(gaps) / count
        mean += centre / 2
        variance += sum((gap - centre) ** 2 for gap in gaps) / count / count / 4
    assert off.mean == pytest.approx(mean)
    half = 1.96 * math.sqrt(variance)
    assert (off.low, off.high) == (
        pytest.approx(mean - half, abs=0.15 * half),
        pytest.approx(mean + half, abs=0.15 * half),
    )
    assert paired_difference(one, one) == replace(off, mean=0.0, low=0.0, high=0.0)


class TestASummary:
    MEMBERS = {"a alone": {"x": [1.0] * 30 + [0.0] * 70}, "b alone": {"x": [1.0] * 20 + [0.0] * 80}}

    def test_recommends_what_is_surely_better(self):
        ways = {("deepen", "a"): {"x": [1.0] * 55 + [0.0] * 45}, ("product", "a"): {"x": [1.0] * 32 + [0.0] * 68}}
        found = summarised(self.MEMBERS, ways)
        assert found.best_member.label == "a alone"
        assert [row.label for row in found.rows] == ["deepen", "product", "a alone", "b alone"]
        assert found.recommended.label == "deepen"
        assert found.recommended.difference.mean == pytest.approx(0.25)
        assert found.advice.startswith("Run deepen with main a: +25.0 points against a alone (95 % interval +17.0 to +")

    def test_recommends_a_member_where_nothing_is(self):
        found = summarised(self.MEMBERS, {("product", "a"): {"x": [1.0] * 31 + [0.0] * 69}})
        assert found.recommended is None
        assert found.advice == "Run a alone: no setting is better than it beyond chance."

    def test_means_are_of_tasks(self):
        found = summarised({"a alone": {"x": [1.0], "y": [0.0] * 9}}, {})
        assert found.best_member.mean == 0.5
        assert found.items == {"x": 1, "y": 9}


@settings(max_examples=examples(50))
@given(nats=st.lists(st.tuples(st.floats(-50, 0), st.integers(1, 20)), min_size=1, max_size=5))
def test_the_choice_is_the_likeliest_a_byte(nats):
    values, lengths = [n for n, _ in nats], [b for _, b in nats]
    found = chosen(values, lengths)
    assert all(values[found] / lengths[found] >= v / b for v, b in nats)
    assert voted({"a": values, "b": [1.0] * len(values)}, [2.0, 3.0]) == pytest.approx([2 * v + 3 for v in values])


def test_items_answered_right():
    scores = [ChoiceScores([1, 10, 1], {"a": [-1, -5, -3], "b": [-5, -5, -1]}, {"deepen 1": [-2, -9, -9]})] * 2
    task = Task("x", (ChoiceItem("?", ("x", "y", "z"), 1), ChoiceItem("?", ("x", "y", "z"), 2)))
    assert rights_of_members(task, scores) == {"a alone": [1, 0], "b alone": [1, 0], "vote": [1, 0]}
    assert rights(task, scores, {"it": Setting("deepen", (1.0,))}) == {"it": [1, 0]}


class TestTasks:
    def test_are_read(self, tmp_path):
        assert read_task(written(tmp_path / "animals.jsonl", ITEMS)) == TASK
        assert read_task(tmp_path / "animals.jsonl", limit=2).items == ITEMS[:2]
        assert read_task(written(tmp_path / "t.jsonl", [TextItem("a", "b")])).items == (TextItem("a", "b"),)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "has no items"),
            ("{", "line 1: it is not JSON"),
            ("\n[]", "line 2: it is a list, not an object"),
            (
                '{"question": "x"}',
                "line 1: it has question, but no choices, answers, test or text. An item is an object",
            ),
            ('{"question": "x", "choices": ["a", "b"]}', "it has no answer"),
            ('{"choices": ["a", "b"], "answer": 0}', "it has no question"),
            ('{"question": "x", "answers": []}', "its answers are not a list of at least one text"),
            ('{"question": "x", "answers": ["1"], "solution": 1}', "its solution is not a text"),
            ('{"question": "x", "answers": ["five"], "solution": "y"}', "its answers are not numbers"),
            ('{"prompt": "x", "test": "y"}', "it has no entry_point"),
            ('{"prompt": "x", "text": ""}', "its text is empty"),
            (
                '{"question": "x", "answers": ["1"], "solution": "1"}\n{"question": "x", "answers": ["1"]}',
                "several kinds",
            ),
            ('{"question": 1, "choices": ["a", "b"], "answer": 0}', "its question is not a text"),
            ('{"question": "x", "choices": ["a"], "answer": 0}', "its choices are not a list of at least two texts"),
            (
                '{"question": "x", "choices": ["a", ""], "answer": 0}',
                "its choices are not a list of at least two texts",
            ),
            ('{"question": "x", "choices": ["a", "b"], "answer": 2}', "its answer is 2, not a number from 0 to 1"),
            ('{"question": "x", "choices": ["a", "b"], "answer": true}', "its answer is True, not a number"),
            ('{"question": "x", "choices": ["a", "b"], "answer": 1}\n{"prompt": "a", "text": "b"}', "several kinds"),
        ],
    )
    def test_that_are_none(self, tmp_path, text, message):
        (tmp_path / "x.jsonl").write_text(text)
        with pytest.raises(EvaluationError, match=message):
            read_task(tmp_path / "x.jsonl")

    def test_files_that_cannot_be_read(self, tmp_path):
        (tmp_path / "x.jsonl").write_bytes(b"\xff")
        for name in ("x.jsonl", "y.jsonl"):
            with pytest.raises(EvaluationError, match="cannot be read"):
                read_task(tmp_path / name)

    def test_to_fit_on_and_to_compare_on_share_no_item(self):
        texts, questions = Task("texts", (TextItem("a", "b"),)), Task("questions", QUESTIONS)
        for plan, message in (
            (Plan([TASK], [Task("other", ITEMS[:1])]), "1 of the items are fitted on or shown too"),
            (Plan([questions], shots=[questions]), "2 of the items are fitted on or shown too"),
            (Plan([texts]), "texts has texts to fit on"),
            (Plan([TASK], [questions]), "questions has open questions: weights are fitted on choices or texts"),
            (Plan([questions], shots=[TASK]), "animals has no open questions"),
            (Plan([TASK], [texts]), "texts has texts without choices: fit by likelihood"),
            (Plan([TASK], by="luck"), "fitted by score or likelihood, not by 'luck'"),
            (Plan([]), "There is nothing to compare"),
            (Plan([TASK], mains=[]), "There is nothing to compare"),
            (Plan([TASK], fusions=["x"]), "'x' is none of deepen"),
            (Plan([TASK], policies=["x"]), "'x' is none of deepen"),
            (Plan([TASK, Task("animals", QUESTIONS)]), "There are two tasks called animals"),
        ):
            with pytest.raises(EvaluationError, match=message):
                plan.check()
        Plan([TASK, questions], [texts], by="likelihood").check()


class TestTheCommands:
    @pytest.fixture
    def opened(self, monkeypatch, load):
        monkeypatch.setattr(
            "deepen_integrations.cli.commands.open_ensemble", lambda _, chat=False: load("alpha", "beta")
        )

    @pytest.fixture
    def files(self, tmp_path):
        others = [ChoiceItem(item.question + "!", item.choices, item.answer) for item in ITEMS]
        return written(tmp_path / "test.jsonl", ITEMS), written(tmp_path / "dev.jsonl", others)

    @pytest.mark.usefixtures("opened")
    def test_eval(self, files, tmp_path):
        tasks, dev = files
        out = tmp_path / "out"
        result = deepen("eval", str(tasks), "--fit", str(dev), "--each-main", "--output", str(out))
        assert result.exit_code == 0, result.output
        assert "alpha alone" in result.output
        assert "Run " in result.output
        found = json.loads((out / "summary.json").read_text())
        assert found["advice"] in result.output
        assert len(found["weights"]) == 6
        assert {path.name for path in out.iterdir()} >= {
            "run.json",
            "scores.jsonl",
            "summary.svg",
            "weights-deepen-beta.json",
        }
        result = deepen(
            "eval",
            str(tasks),
            "--fusion",
            "product",
            "--policy",
            "adaptive",
            "--gate",
            "0.5",
            "--json",
            "--main",
            "beta",
        )
        rows = json.loads(result.stdout)["summary"]["rows"]
        assert {row["label"] for row in rows} == {
            "alpha alone",
            "beta alone",
            "vote",
            "product",
            "product, adaptive",
            "product, gate 0.5",
        }
        assert {row["main"] for row in rows} == {"", "beta"}

    @pytest.mark.usefixtures("opened")
    def test_fit(self, files, tmp_path):
        result = deepen("fit", str(files[1]), "--by", "likelihood", "--output", str(tmp_path / "w.json"))
        assert result.exit_code == 0, result.output
        fit = FittedWeights.load(tmp_path / "w.json")
        assert result.stdout.split("\n")[0] == ",".join(f"{w:g}" for w in fit.weights)
        assert "bits a byte of right answers" in result.stderr

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["nowhere.jsonl"], "There is no file nowhere.jsonl"),
            (["{task}", "--by", "luck"], "'luck' is neither score nor likelihood"),
            (["{task}", "--fusion", "x"], "'x' is none of deepen"),
            (["{task}", "--policy", "x"], "'x' is none of static"),
            (["{task}", "--fit", "{task}"], "3 of the items are fitted on or shown too"),
            (["{task}", "--shots", "nowhere.jsonl"], "There is no file nowhere.jsonl"),
        ],
    )
    def test_mistakes_are_told_before_anything_is_loaded(self, files, options, message):
        result = deepen("eval", *(option.format(task=files[0]) for option in options))
        assert result.exit_code in (1, 2)
        assert message in " ".join(result.output.replace("│", " ").split())
