"""Weights that are fitted on examples."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from evaluation_parts import ITEMS, QUESTIONS, written
from table_member import TableMember
from tiny import CORPUS, byte_level, save_llama, sentencepiece_bpe
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from deepen_core import Ensemble
from deepen_core.demo import write_tasks
from deepen_core.engine.scoring import TextReader
from deepen_core.errors import ConfigurationError, EvaluationError
from deepen_core.evaluation import evaluation
from deepen_core.evaluation.evaluation import Evaluation
from deepen_core.evaluation.fitted_weights import FittedWeights
from deepen_core.evaluation.fitting import best, bits_a_byte, candidates, compared, fitted
from deepen_core.evaluation.items import (
    ChoiceItem,
    CodeItem,
    OpenItem,
    RightAnswer,
    Task,
    TextItem,
    TranslationItem,
    right_answers,
)
from deepen_core.evaluation.judged_task import JudgedTask
from deepen_core.evaluation.likelihood import ChoiceScores
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.settings import Setting, Settings, equal, grid_of_weights
from deepen_core.evaluation.task_file import read_task


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

    @pytest.mark.parametrize("by", ["score", "likelihood"])
    @pytest.mark.parametrize(
        ("right", "expected"),
        [
            ({"0.1 0.9": 40, "0.5 0.5": 20, "alone": 10}, (0.1, 0.9)),
            ({"0.1 0.9": 21, "0.5 0.5": 20, "alone": 10}, (0.5, 0.5)),
            ({"0.1 0.9": 21, "0.5 0.5": 10, "alone": 20}, (1, 0)),
            ({"0.1 0.9": 20, "0.5 0.5": 20, "alone": 20}, (1, 0)),
        ],
    )
    def test_have_to_be_better_than_chance(self, right, expected, by):
        """By how many of 60 items are answered right, which overlap as if by chance."""
        labels, count = [s.label for s in candidates("deepen", 2)], 60
        places = {name: {(7 * i + k) % count for i in range(n)} for k, (name, n) in enumerate(right.items())}

        def nats(name, item):
            return [-1.0, -2.0] if item in places.get(name, ()) else [-2.0, -1.0]

        scores = [
            ChoiceScores(
                [1, 1],
                {"first": nats("alone", item), "second": [-9.0, -9.0]},
                {label: nats(label.removeprefix("deepen "), item) for label in labels},
            )
            for item in range(count)
        ]
        tasks = [(Task("x", tuple(ChoiceItem("x", ("a", "b"), 0) for _ in range(count))), scores)]
        found = fitted(tasks, "deepen", ["first", "second"], "first", by)
        assert tuple(found.weights) == expected
        if by == "score":
            assert [round(v * count) for v in (found.equal_value, found.alone_value)] == [
                right["0.5 0.5"],
                right["alone"],
            ]

    def test_of_one_member(self):
        scores = [ChoiceScores([1, 1], {"one": [-1.0, -2.0]}, {"deepen 1": [-1.0, -2.0]})]
        found = fitted([(Task("x", (ChoiceItem("x", ("a", "b"), 0),)), scores)], "deepen", ["one"], "one", "score")
        assert (found.weights, found.value, found.equal_value, found.alone_value) == ([1.0], 1.0, 1.0, 1.0)

    def test_of_answers_that_greedy_decoding_writes(self):
        """Which are right says more than how likely they are."""
        labels, count = [s.label for s in candidates("deepen", 2)], 20
        tasks = [(Task("x", (RightAnswer("x", "y"),) * count), [])]
        for item in range(count):
            nats = {label: [-9.0 if label == "deepen 0.7 0.3" else -1.0] for label in labels}
            greedy = {label: item < 5 or label == "deepen 0.7 0.3" for label in [*labels, "first"]}
            tasks[0][1].append(ChoiceScores([1], {"first": [-1.0]}, nats, greedy=greedy))
        found = fitted(tasks, "deepen", ["first", "second"], "first", "score")
        assert (found.weights, found.value, found.equal_value, found.alone_value) == ([0.7, 0.3], 1.0, 0.25, 0.25)
        assert fitted(tasks, "deepen", ["first", "second"], "first", "likelihood").weights == [1, 0]
        for held in tasks[0][1]:
            held.greedy.update(dict.fromkeys(held.greedy, False))
        assert fitted(tasks, "deepen", ["first", "second"], "first", "score").tells_nothing

    @pytest.mark.parametrize(("first", "second", "weights"), [(40, 4, [1, 0]), (4, 40, [0.1, 0.9]), (9, 8, [0.1, 0.9])])
    def test_of_answers_that_nothing_is_read_of(self, first, second, weights):
        """Sums and programs count by the members' own answers: else they count for no weights, however bad.

        The choices are best at (0.1, 0.9), by a fifth of them; where members calculate alike, that decides.
        """
        labels, count = [s.label for s in candidates("deepen", 2)], 50
        choices = Task("choices", (ChoiceItem("x", ("a", "b"), 0),) * count)
        sums = Task("sums", (RightAnswer("x", "1 + 1 = 2, and so on"),) * count)
        code = Task("code", (CodeItem("def f():", "def check(f): pass", "f"),) * count)

        def nats(label, item):
            return [-1.0, -2.0] if item < 10 or (label == "deepen 0.1 0.9" and item < 20) else [-2.0, -1.0]

        read = [
            ChoiceScores([1, 1], {"one": nats("", item), "two": nats("", item)}, {x: nats(x, item) for x in labels})
            for item in range(count)
        ]
        nothing = dict.fromkeys([*labels, "one"], False) | {"union 0.5 0.5": True}  # another strategy may write it
        unread = [ChoiceScores([9], {"one": [-9.0]}, {x: [-9.0] for x in labels}, greedy=nothing)] * count
        judged = []

        def judge(number):
            judged.append(number)
            rights = [[float(item < first), float(item < second)] for item in range(count)]
            return JudgedTask(str(number), torch.tensor(rights))

        found = fitted([(choices, read), (sums, unread), (code, [])], "deepen", ["one", "two"], "one", "score", judge)
        assert judged == [1, 2]
        assert (found.weights, found.by, found.tasks) == (weights, "score", ["choices", "sums", "code"])
        own = (weights[0] * first + weights[1] * second) / count
        assert found.value == pytest.approx(((0.4 if weights[1] > weights[0] else 0.2) + 2 * own) / 3)
        assert found.alone_value == pytest.approx((0.2 + 2 * first / count) / 3)
        assert found.equal_value == pytest.approx((0.2 + (first + second) / count) / 3)

        only = fitted([(code, [])], "deepen", ["one", "two"], "one", "score", judge)
        assert (only.weights, only.tasks) == ([1, 0] if first > second else [0.1, 0.9], ["code"])

    @pytest.mark.parametrize(("written", "is_read"), [(0, False), (9, False), (10, True), (24, True), (25, True)])
    def test_answers_are_read_if_they_are_written_often_enough(self, written, is_read):
        """At least half as often as a member is right alone, in whatever words; it need not answer if that is sure."""
        labels, count = [s.label for s in candidates("deepen", 2)], 50
        task, judged = Task("sums", (RightAnswer("x", "1 + 1 = 2"),) * count), []
        scores = [
            ChoiceScores(
                [1],
                {"one": [-1.0], "two": [-1.0]},
                {label: [-1.0] for label in labels},
                greedy=dict.fromkeys([*labels, "one"], False) | {"deepen 0.5 0.5": item < written},
            )
            for item in range(count)
        ]
        rights = torch.tensor([[float(item < 2), float(item < 20)] for item in range(count)])

        def judge(number):
            judged.append(number)
            return JudgedTask("sums", rights)

        found = fitted([(task, scores)], "deepen", ["one", "two"], "one", "score", judge)
        assert found.equal_value == pytest.approx(written / count if is_read else 11 / count)
        assert found.weights == ([0.5, 0.5] if is_read else [0.1, 0.9])
        assert judged == ([] if written == 25 else [0])

    def test_of_nothing_that_anybody_answers_right(self):
        """Main alone where answers cannot be read."""
        code = Task("code", (CodeItem("def f():", "def check(f): pass", "f"),) * 3)
        nobody = fitted(
            [(code, [])], "deepen", ["one", "two"], "one", "score", lambda _: JudgedTask("", torch.zeros(3, 2))
        )
        assert (nobody.by, nobody.weights, nobody.value) == ("score", [1, 0], 0)
        assert nobody.tells_nothing

    @pytest.mark.parametrize("judges", ["fit", "evaluate"])
    def test_members_answer_what_nothing_is_read_of(self, pair, judges, monkeypatch, tmp_path):
        """The second one alone knows the rest of the program: it has most weight, as far as choices are equal."""
        answers = {"alpha": [0, 0, 0, 0], "beta": [1, 1, 1, 1]}
        monkeypatch.setattr(
            "deepen_core.evaluation.member_alone.MemberAlone.answers",
            lambda self, _, task: [type("A", (), {"right": right}) for right in answers[self.name][: len(task.items)]],
        )
        lines = [
            json.dumps({"prompt": f"def f{n}():\n", "test": "def check(f): pass", "entry_point": f"f{n}"})
            for n in range(4)
        ]
        path = tmp_path / "code.jsonl"
        path.write_text("\n".join(lines))
        if judges == "fit":
            found = pair.fit_weights(path, progress=False)
        else:
            plan = Plan([Task("choices", tuple(ITEMS))], [read_task(path)], fusions=["deepen"], policies=[], gates=[])
            [found] = pair.evaluate(plan, progress=False).weights
        assert (found.policy, found.by, found.weights) == ("static", "score", [0.1, 0.9])
        assert (found.value, found.alone_value) == (pytest.approx(0.9), 0)

    @pytest.mark.usefixtures("needs_demo")
    @pytest.mark.parametrize("fusion", ["deepen", "product", "union"])
    def test_reading_finds_what_greedy_decoding_writes(self, fusion, tmp_path):
        """For answers that it writes, and for others, in one go with all weights."""
        facts = read_task(write_tasks(tmp_path, "validation")[0], 16)
        settings = [Setting(fusion, weights) for weights in ((0.5, 0.5), (0.9, 0.1), (0.1, 0.9))]
        with Ensemble.demo() as ensemble:
            reader = TextReader(ensemble._engine, 0, range(2))
            evaluation = Evaluation(None, {}, chat=False, progress=False)
            texts = right_answers(facts, (), chat=False)
            scores = evaluation.scores(reader, texts, settings, greedy=True)
            plain = evaluation.scores(reader, Task("again", texts.items), settings)
            rights = []
            for place, setting in enumerate([*settings, Setting(fusion, (1.0, 0.0))]):
                built = Settings(reader.members, 0, [setting])
                answers = evaluation.answers(reader, facts, setting, built, str(place))
                label = setting.label if place < len(settings) else "atlas-gpt2"
                for item, answer, held in zip(facts.items, answers, scores, strict=True):
                    # What is read ends with the answer; what is written may go on.
                    assert held.greedy[label] == answer.text.strip().startswith(item.shown)
                    rights.append(held.greedy[label])
        assert len(set(rights)) == 2
        assert not any(held.greedy for held in plain)
        for one, other in zip(scores, plain, strict=True):
            for label, nats in one.together.items():
                assert nats == pytest.approx(other.together[label], abs=1e-4)

    @pytest.mark.usefixtures("needs_demo")
    def test_go_on_by_another_measure_in_the_same_folder(self, tmp_path):
        place = tmp_path / "facts.jsonl"
        write_tasks(tmp_path, "validation")
        with Ensemble.demo() as ensemble:
            options = {"limit": 4, "output": tmp_path / "held", "progress": False}
            likely = ensemble.fit_weights(place, by="likelihood", **options)
            right = ensemble.fit_weights(place, **options)
            size = (tmp_path / "held" / "scores.jsonl").stat().st_size
            assert ensemble.fit_weights(place, **options) == right
            assert ensemble.fit_weights(place, by="likelihood", **options).weights == likely.weights
        assert (tmp_path / "held" / "scores.jsonl").stat().st_size == size
        assert (right.by, likely.by) == ("score", "likelihood")

    @pytest.mark.parametrize("fusion", ["deepen", "product"])
    def test_favour_who_knows_more(self, fusion, tmp_path):
        """Of two members that have met different texts, on the texts of one."""
        tables = TableMember("first", byte_level(), CORPUS[:4]), TableMember("second", sentencepiece_bpe(), CORPUS[4:7])
        for known, texts in enumerate((CORPUS[:3], CORPUS[4:7])):
            cuts = [re.search(r"\S(?= \S)", text[12:]).end() + 12 for text in texts]  # between tokens of both
            cut = [(text[:at], text[at:]) for text, at in zip(texts, cuts, strict=True)]
            place = written(tmp_path / f"{known}.jsonl", [TextItem(*parts) for parts in cut])
            with Ensemble.from_members(tables, fusion=fusion, weights="static") as ensemble:
                found = ensemble.fit_weights(place, by="likelihood", progress=False)
                own = [ensemble.score(*parts) for parts in cut]
            assert found.weights[known] > 0.5
            assert found.value < found.equal_value
            assert found.members == ["first", "second"]
            equal_bits = -sum(s.total / s.bytes for s in own) / len(own) / math.log(2)
            assert found.equal_value == pytest.approx(equal_bits, abs=1e-4)
            with Ensemble.from_members(tables, fusion=fusion, weights=found.weights) as ensemble:
                own = [ensemble.score(*parts) for parts in cut]
            assert found.value == pytest.approx(-sum(s.total / s.bytes for s in own) / len(own) / math.log(2), abs=1e-4)

    def test_on_right_answers_as_they_are_asked_for(self):
        sum_, fact = OpenItem("1 + 1?", ("2",), "1 + 1 = 2"), OpenItem("Who?", ("Ann", "Anna"))
        shots = [OpenItem("2 + 1?", ("3",), "2 + 1 = 3"), OpenItem("Where?", ("Rome",))]
        items = (sum_, fact, TranslationItem("a", "b"), TextItem("c", "d"))
        task = Task("x", items)
        plain, chats = (right_answers(task, shots, chat=chat) for chat in (False, True))
        assert plain.items == (
            RightAnswer("Question: 2 + 1?\nAnswer: 2 + 1 = 3\n\nQuestion: 1 + 1?\nAnswer:", " 1 + 1 = 2"),
            RightAnswer("Question: Where?\nAnswer: Rome\n\nQuestion: Who?\nAnswer:", " Ann"),
            RightAnswer("a", "b"),
            TextItem("c", "d"),
        )
        assert [item.text for item in chats.items] == ["1 + 1 = 2", "Ann", "b", "d"]
        assert chats.items[1].prompt == fact.prompt(shots, chat=True)
        assert [turn["role"] for turn in chats.items[1].prompt] == ["user", "assistant", "user"]

    @pytest.fixture
    def readings(self, monkeypatch):
        """What is read: labels of settings, and whether all of the vocabulary is fused."""
        found, score_items = [], evaluation.score_items

        def told(reader, items, settings, *, greedy, **rest):
            found.append(([setting.label for setting in settings._settings], greedy))
            return score_items(reader, items, settings, greedy=greedy, **rest)

        monkeypatch.setattr(evaluation, "score_items", told)
        return found

    @pytest.mark.parametrize("policy", ["static", "perplexity"])
    def test_answers_that_are_not_written_are_read_in_few_settings(self, pair, readings, policy, tmp_path):
        """The others would fuse all of the vocabulary and tell nothing. If nothing is right, likelihood decides."""
        sums = [OpenItem("1 + 1?", ("2",), "1 + 1 = 2"), OpenItem("1 + 2?", ("3",), "1 + 2 = 3")]
        place, labels = written(tmp_path / "x.jsonl", sums), [s.label for s in compared("deepen", 2, [policy])]
        found = pair.fit_weights(place, policy=policy, progress=False)
        few = ["deepen 0.5 0.5", "deepen 0.9 0.1", "deepen 0.1 0.9"]
        assert readings == [(few, True), ([label for label in labels if label not in few], False)]
        likely = pair.fit_weights(place, by="likelihood", policy=policy, progress=False)
        assert (found.by, found.weights, found.policy) == ("likelihood", likely.weights, likely.policy)
        assert found.value == pytest.approx(likely.value, rel=1e-5)
        assert found.value > 0

    def test_choices_are_read_without_the_vocabulary(self, pair, readings, tmp_path):
        files = [written(tmp_path / "x.jsonl", ITEMS), written(tmp_path / "y.jsonl", QUESTIONS)]
        pair.fit_weights(files, progress=False)
        assert [greedy for _, greedy in readings] == [False, True]

    @pytest.mark.usefixtures("needs_demo")
    def test_answers_that_are_written_are_read_in_all_settings(self, readings, tmp_path):
        """Each of them once."""
        facts = write_tasks(tmp_path, "validation")[0]
        with Ensemble.demo() as ensemble:
            found = ensemble.fit_weights(facts, limit=12, progress=False)
        assert (found.by, found.weights) == ("score", [0.5, 0.5])
        assert [greedy for _, greedy in readings] == [True, True]
        labels = [label for asked, _ in readings for label in asked]
        assert sorted(labels) == sorted(s.label for s in candidates("deepen", 2))

    @pytest.mark.parametrize("strategies", [["deepen"], ["deepen", "product"]])
    def test_whether_answers_are_written_is_told_for_each_strategy(self, pair, strategies, monkeypatch):
        """By "product" alone: the members' own answers count for "deepen", whatever it is compared with."""
        scores, asked = evaluation.Evaluation.scores, []

        def found(self, reader, task, settings, *, greedy=False):
            asked.append({setting.fusion for setting in settings})
            held = scores(self, reader, task, settings, greedy=greedy)
            return [replace(one, greedy={label: "product" in label for label in one.greedy}) for one in held]

        monkeypatch.setattr(evaluation.Evaluation, "scores", found)
        monkeypatch.setattr("deepen_core.evaluation.evaluation.mark", lambda *_, **__: 0.25)
        plan = Plan([Task("x", ITEMS)], [Task("y", QUESTIONS)], fusions=strategies, policies=[], gates=[])
        fits = {fit.fusion: fit.value for fit in pair.evaluate(plan, progress=False).weights}
        both = len(strategies) > 1
        assert fits == ({"deepen": 0.25, "product": 1.0} if both else {"deepen": 0.25})
        assert asked[:-1] == [set(strategies), *[{"product"}] * both]  # before what is compared

    @pytest.mark.parametrize("by", ["score", "likelihood"])
    def test_of_questions_in_conversations(self, load, by):
        """And of two files with the same items."""
        same = [Task("y", QUESTIONS), Task("y", QUESTIONS)]
        plan = Plan([Task("x", ITEMS)], same, fusions=["deepen"], gates=[], by=by, chat=True)
        with load("alpha", "alpha") as chatting:
            fits = chatting.evaluate(plan, progress=False).weights
        assert [fit.fitted_for for fit in fits] == ["static", "perplexity"]
        assert all(fit.tasks == ["y", "y"] for fit in fits)

    @pytest.mark.parametrize("fusion", ["union", "translate", "product"])
    def test_of_three_members(self, load, fusion, tmp_path):
        place = written(tmp_path / "x.jsonl", ITEMS)
        with load("alpha", "beta", "alpha", fusion=fusion) as three:
            found = three.fit_weights(place, policy="perplexity", by="likelihood", progress=False)
        assert len(found.weights) == 3
        assert sum(found.weights) == pytest.approx(1)
        with load("alpha", "beta", "alpha", fusion=fusion, weights=found.option) as three:
            asked = [item.asked(chat=False)[item.answer] for item in ITEMS]
            nats = [three.score(*given).total / len(given[1].encode()) for given in asked]
        assert found.value == pytest.approx(-sum(nats) / len(ITEMS) / math.log(2), rel=1e-4)

    def test_are_saved_and_loaded(self, tmp_path):
        fit = FittedWeights(["a", "b"], "a", "deepen", [0.25, 0.75], "score", ["arc"], 0.5, 0.25, 0.125)
        fit.save(tmp_path / "w.json")
        assert FittedWeights.load(tmp_path / "w.json") == fit
        for text in ("{", "[]", '{"members": []}'):
            (tmp_path / "w.json").write_text(text)
            with pytest.raises(EvaluationError, match="does not hold fitted weights"):
                FittedWeights.load(tmp_path / "w.json")

    @pytest.mark.parametrize("policy", ["static", "perplexity"])
    def test_of_options_of_its_own(self, load, policy, monkeypatch, tmp_path):
        """They are kept, as scores show; a folder could not tell them apart.

        The strategy that answers requests meanwhile is left alone: it is not for two threads.
        """
        place = written(tmp_path / "x.jsonl", ITEMS)
        with load("alpha", "beta", fusion={"power": 0.3}) as own:
            monkeypatch.setattr(own._engine.fusion, "compare", None)
            found = own.fit_weights(place, policy=policy, by="likelihood", progress=False)
            own_equal = own.fit_weights(place, by="likelihood", progress=False).equal_value
            with pytest.raises(ConfigurationError, match=r"has options of its own \(custom \(deepen\)\)"):
                own.fit_weights(place, policy=policy, output=tmp_path / "kept")
        assert (found.fusion, found.fitted_for) == ("custom (deepen)", policy)
        bits = {}
        for power in (0.3, 1.0):
            with load("alpha", "beta", fusion={"power": power}, weights=[0.5, 0.5]) as other:
                asked = [item.asked(chat=False)[item.answer] for item in ITEMS]
                nats = [other.score(*pair).total / len(pair[1].encode()) for pair in asked]
            bits[power] = -sum(nats) / len(ITEMS) / math.log(2)
        static = own_equal if policy == "perplexity" else found.equal_value
        assert static == pytest.approx(bits[0.3], rel=1e-4)
        assert bits[0.3] != pytest.approx(bits[1.0], rel=1e-3)

    @pytest.mark.filterwarnings("ignore::deepen_core.errors.CompatibilityWarning")
    def test_shares_of_members_without_shared_tokens(self, folders, tmp_path):
        """No strategy is built that they do not suit."""
        odd = Tokenizer(models.WordLevel({"zzzzzzzz": 0, "</s>": 1}, unk_token="</s>"))
        save_llama(tmp_path / "odd", PreTrainedTokenizerFast(tokenizer_object=odd, eos_token="</s>"), chat=False)
        place = tmp_path / "x.jsonl"
        place.write_text(json.dumps({"question": "Who runs?", "answers": ["a fox"]}))
        options = {"fusion": {"strategy": "bytes", "mode": "mixture"}, "device": "cpu", "progress": False}
        with Ensemble.load([folders["alpha"], tmp_path / "odd"], **options) as own:
            assert own.fit_weights(place, policy="perplexity", progress=False).fusion == own.info.fusion
