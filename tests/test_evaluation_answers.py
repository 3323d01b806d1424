"""Open questions and exercises: how they are asked, answered and judged."""

import json
import os
import sys
import time

import pytest
from evaluation_parts import QUESTIONS, TASK
from tiny import CORPUS

from deepen_core.errors import ContextWindowError, SamplingError
from deepen_core.evaluation import run
from deepen_core.evaluation.code_run import passes
from deepen_core.evaluation.cost import Cost, cost
from deepen_core.evaluation.fitted_weights import FittedWeights
from deepen_core.evaluation.generation import Answer
from deepen_core.evaluation.items import ChoiceItem, CodeItem, OpenItem, Task, TranslationItem
from deepen_core.evaluation.judging import is_right, mark
from deepen_core.evaluation.plan import Plan
from deepen_core.voting.extraction import last_number, plain

MATHS = OpenItem("What is 1 + 1?", ("2",), "1 + 1 = 2.\nTherefore, the answer is 2")
CODE = CodeItem("def double(x):\n", "def check(candidate):\n    assert candidate(2) == 4\n", "double")


@pytest.mark.parametrize(
    ("item", "text", "right"),
    [
        (QUESTIONS[0], " the dog.", True),
        (QUESTIONS[0], " the dogs", False),
        (QUESTIONS[0], " THE DOG!", True),
        (QUESTIONS[1], "a fox", True),
        (QUESTIONS[1], "", False),
        (MATHS, "1 + 1 = 2, so the answer is 2.", True),
        (MATHS, "the answer is 3", False),
        (MATHS, "two", False),
        (OpenItem("?", ("1,200.50",), "x"), "It is $1200.5", True),
        (OpenItem("?", ("-3",), "x"), "-3.", True),
        (OpenItem("?", ("10",), "x"), "it is 5-10", True),
        (OpenItem("?", ("A",)), "", False),
        (OpenItem("?", ("A",)), " a", True),
        (OpenItem("?", ("+",)), "?!", False),
        (CODE, "    return 2 * x\n", True),
        (CODE, "    return x\n", False),
        (CODE, "    return 2 *", False),
    ],
)
def test_right_and_wrong(item, text, right):
    assert is_right(item, text) is right


@pytest.mark.parametrize(
    ("answers", "text", "right"),
    [
        (("the Lazy Dog", "fox"), "It was a lazy dog, they say.", True),
        (("dog",), "Dogs are lazy.", False),
        (("dog",), "the dog", True),
        (("new york",), "New\nYork!", True),
        (("new york",), "York is new", False),
        (("?",), "Is it?", False),
        (("",), "Anything", False),
    ],
)
def test_in_a_conversation_an_answer_may_be_in_a_sentence(answers, text, right):
    item = OpenItem("?", answers)
    assert is_right(item, text, chat=True) is right
    assert mark(item, text, chat=True) == right
    assert is_right(item, "no", chat=True) is False
    assert is_right(MATHS, "2, no, 3", chat=True) is False


def test_weights_that_are_fitted_to_main_alone_answer_open_questions_as_it_does(pair, monkeypatch):
    """Their row has every task: a mean of fewer would be compared with the other rows'."""
    fit = FittedWeights(["alpha", "beta"], "alpha", "product", [1.0, 0.0], "score", ["texts"], 1.0, 0.5, 1.0)
    monkeypatch.setattr(run.Fits, "found", lambda _: [fit])
    plan = Plan([TASK, Task("open", QUESTIONS)], fusions=("product",), policies=(), gates=())
    shares = {row.label: row.shares for row in pair.evaluate(plan, progress=False).summary.rows}
    assert shares["alpha alone"].keys() == {"animals", "open"}
    assert shares["product, fitted 1 0"] == shares["alpha alone"]


def test_answers_that_are_held_are_judged_by_the_rule_of_now(pair, tmp_path):
    """A folder that was begun with an earlier rule goes on, and all of its answers are judged alike."""
    plan = Plan([Task("open", tuple(QUESTIONS))])
    pair.evaluate(plan, output=tmp_path)
    held = tmp_path / "answers.jsonl"
    lines = [json.loads(line) for line in held.read_text().splitlines() if line]
    right = next(item.answers[0] for item in QUESTIONS)
    held.write_text("\n".join(json.dumps({**line, "text": right, "right": False}) for line in lines))
    shares = [row.shares["open"] for row in pair.evaluate(plan, output=tmp_path).summary.rows]
    assert all(share > 0 for share in shares)


def test_translations_are_marked_by_chrf():
    pytest.importorskip("sacrebleu")
    item = TranslationItem("le chien", "the lazy dog")
    assert mark(item, " the lazy dog\n") == 1
    assert 0.3 < mark(item, "the lazy fox") < 0.9
    assert mark(item, "") == 0
    assert mark(QUESTIONS[0], " the dog.") == 1


def test_translations_need_sacrebleu_before_anything_is_run(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
    with pytest.raises(SamplingError, match="chrF needs sacrebleu"):
        pair.evaluate(Plan([Task("french", (TranslationItem("le chien", "the dog"),))]), progress=False)


def test_plain_texts_and_numbers():
    assert plain(' The  U.S.A., an "island" ') == "usa island"
    assert last_number("no") is None
    assert last_number("1,000 and 2,500.75 in all") == 2500.75


class TestPrograms:
    @pytest.mark.parametrize(
        "program",
        [
            "import sys; sys.exit(0)",
            "import os; os._exit(0)",
            "raise SystemExit",
            "x = [0] * 10**10",
            "open('x', 'wb').write(bytes(2**22))",
            "assert False",
            "def",
        ],
    )
    def test_that_do_not_reach_their_end(self, program):
        if sys.platform == "win32" and "10**10" in program:
            pytest.skip("Windows has no limits of resources")
        assert not passes(program)

    def test_that_never_end(self):
        assert not passes("while True: pass", timeout=1)

    def test_run_by_themselves(self, monkeypatch):
        """In an empty directory, without this process's environment and modules, reading nothing."""
        monkeypatch.setenv("SECRET", "x")
        assert passes(
            "import os, sys\n"
            "assert os.listdir('.') == []\n"
            "assert 'SECRET' not in os.environ\n"
            "assert 'torch' not in sys.modules\n"
            "assert sys.stdin.read() == ''\n"
            "print('anything')\n"
            "open('x', 'w').write('y')\n"
        )
        assert passes("x = 'läuft 你好'")
        typed = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nA(1)"
        assert passes(f"from __future__ import annotations\n{typed}")

    def test_print_as_much_as_they_like(self):
        assert not passes("while True: print('x' * 10**6)", timeout=1)
        assert passes("print('x' * 10**7)")

    @pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no groups of processes")
    def test_leave_no_process_behind(self, tmp_path):
        """One that would write a file in a second."""
        program = f"import sys, time; time.sleep(1); open({str(tmp_path / 'late')!r}, 'w')"
        assert passes(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {program!r}])")
        time.sleep(1.5)
        assert not (tmp_path / "late").exists()


class TestPrompts:
    def test_in_plain_text(self):
        one, other = QUESTIONS
        assert one.prompt([], chat=False) == "Question: Who sleeps?\nAnswer:"
        assert one.prompt([other], chat=False) == "Question: What jumps?\nAnswer: fox\n\nQuestion: Who sleeps?\nAnswer:"
        assert MATHS.shown == MATHS.solution
        assert CODE.program("    return x").startswith("def double(x):\n    return x\n\ndef check")
        assert CODE.program("").endswith("\n\ncheck(double)\n")

    def test_in_a_conversation(self):
        one, other = QUESTIONS
        asked = one.prompt([other], chat=True)
        assert [message["role"] for message in asked] == ["user", "assistant", "user"]
        assert asked[1]["content"] == "fox"
        assert asked[0]["content"].startswith("What jumps?\n")
        assert "step by step" in MATHS.prompt([], chat=True)[0]["content"]


def answers_of(ensemble, plan, folder):
    outcome = ensemble.evaluate(plan, output=folder, progress=False)
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n")
    return outcome, [json.loads(line) for line in lines if line]


@pytest.mark.parametrize("chat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_answers_are_those_of_ensembles(pair, load, tmp_path, chat):
    """Each setting of each main, and each member alone, against an ensemble that was loaded with it."""
    shots = Task("shots", (OpenItem("Who runs?", ("the cat",)),))
    others = Task("maths", (MATHS,))
    plan = Plan(
        [Task("questions", QUESTIONS)],
        fusions=["deepen", "union"],
        policies=["adaptive"],
        gates=[0.02],
        mains=[0, 1],
        shots=[others, shots],
        chat=chat,
    )
    outcome, held = answers_of(pair, plan, tmp_path / "out")
    found = {}
    for line in held:
        found.setdefault(line["by"], []).append(line)
    ways = {"alpha alone": {"weights": [1, 0]}, "beta alone": {"weights": [0, 1], "main": 1}}
    for main, name in enumerate(("alpha", "beta")):
        ways |= {
            f"deepen 0.5 0.5, main {name}": {"main": main, "weights": "static"},
            f"deepen context gate 0.02, main {name}": {"main": main, "gate": 0.02},
            f"deepen context, main {name}": {"main": main},
            f"deepen adaptive, main {name}": {"main": main, "weights": "adaptive"},
            f"union 0.5 0.5, main {name}": {"main": main, "fusion": "union"},
            f"union 0.5 0.5 gate 0.02, main {name}": {"main": main, "fusion": "union", "gate": 0.02},
        }
    assert found.keys() == ways.keys()
    for by, options in ways.items():
        with load("alpha", "beta", **options) as ensemble:
            prompts = [item.prompt(shots.items, chat=chat) for item in QUESTIONS]
            expected = ensemble.generate(prompts, max_new_tokens=32, stop=[] if chat else ["\n"])
        assert [line["text"] for line in found[by]] == [answer.text for answer in expected]
        for line, answer in zip(found[by], expected, strict=True):
            assert line["steps"] == {work.name: work.steps for work in answer.member_work}
    costs = {f"{cost.label}, main {cost.main}": cost for cost in outcome.costs}
    assert len(costs) == len(ways)
    for label, main in (("deepen, adaptive", "alpha"), ("deepen, context, gate 0.02", "beta")):
        lines = found[f"{label.replace(',', '')}, main {main}"]
        steps = {name: sum(line["steps"][name] for line in lines) for name in ("alpha", "beta")}
        cost, other = costs[f"{label}, main {main}"], sum(steps.values()) - steps[main]
        assert (cost.tokens, cost.asked) == (steps[main], pytest.approx(other / steps[main]))
        assert cost.seconds == pytest.approx(sum(line["seconds"] for line in lines) / cost.tokens)
    assert costs["deepen, context, gate 0.02, main alpha"].asked < costs["deepen, main alpha"].asked
    assert costs["alpha alone, main alpha"].asked == 0
    rows = {(row.label, row.main) for row in outcome.summary.rows}
    assert rows == {("alpha alone", ""), ("beta alone", "")} | {
        (label, main) for main in ("alpha", "beta") for label in ("deepen", "union", "union, gate 0.02")
    } | {
        (f"deepen, {policy}", main)
        for main in ("alpha", "beta")
        for policy in ("adaptive", "context", "context, gate 0.02")
    }


def test_right_answers_are_counted(pair, tmp_path, monkeypatch):
    """And what is answered once is not answered again."""
    animals = Task("animals", (ChoiceItem("What jumps?", ("the fox", "the lazy dog"), 0),))
    plan = Plan([animals, Task("questions", QUESTIONS)], fusions=["product"], policies=[], gates=[])
    for place in ("generation", "evaluation"):
        known = f"deepen_core.evaluation.{place}.mark"
        monkeypatch.setattr(known, lambda item, _, *, chat: float(item is QUESTIONS[1] and not chat))
    outcome = pair.evaluate(plan, output=tmp_path, progress=False)
    rows = {row.label: row.shares for row in outcome.summary.rows}
    assert {label: shares["questions"] for label, shares in rows.items()} == dict.fromkeys(rows, 0.5)
    assert rows.keys() == {"alpha alone", "beta alone", "product", "product, context"}, "a vote needs choices"
    assert outcome.summary.items == {"animals": 1, "questions": 2}
    monkeypatch.setattr("deepen_core.evaluation.evaluation.answer_items", lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr("deepen_core.evaluation.evaluation.score_items", lambda *_, **__: pytest.fail("read again"))
    assert pair.evaluate(plan, output=tmp_path, progress=False) == outcome


def test_many_questions_are_answered_in_batches(pair, tmp_path):
    task = Task("questions", tuple(OpenItem(f"{text[:12]} {n}", ("x",)) for n, text in enumerate(CORPUS[:4])))
    found = []
    for together in (1, 3):
        plan = Plan([task], fusions=["product"], policies=[], gates=[], together=together)
        _, held = answers_of(pair, plan, tmp_path / str(together))
        found.append([(line["by"], line["item"], line["text"]) for line in held])
    assert found[0] == found[1]
    assert len(found[0]) == 4 * 4


def test_answers_do_not_depend_on_what_was_asked_before(pair, tmp_path):
    """Nor does their time: each batch is read from the start."""
    plan = Plan(
        [Task("questions", (OpenItem(" ".join(CORPUS)[:200], ("x",)),))], fusions=["product"], policies=[], gates=[]
    )
    ran = []
    for folder in ("first", "second"):
        before = sum(member.work.ids_run for member in pair._engine.members)
        pair.evaluate(plan, output=tmp_path / folder, progress=False)
        ran.append(sum(member.work.ids_run for member in pair._engine.members) - before)
    assert ran[0] == ran[1]


def test_of_answers_that_were_kept_without_a_time_none_is_told():
    steps = {"a": 4, "b": 2, "c": 3}
    found = cost("x", "a", [Answer("", False, steps, 0.5), Answer("", False, steps)])
    assert found == Cost("x", "a", 8, 10 / 16, None)
    assert cost("x", "a", []) == Cost("x", "a", 0, 0.0, None)


@pytest.mark.parametrize("item", [OpenItem("fox " * 2000, ("x",)), ChoiceItem("fox " * 2000, ("a dog", "a cat"), 0)])
def test_an_item_that_is_too_long_names_its_task(pair, item):
    plan = Plan([Task("novels", (item,))], fusions=["product"], policies=[], gates=[])
    with pytest.raises(ContextWindowError, match=r"An item of novels is too long\. .* leave it out of the task"):
        pair.evaluate(plan, progress=False)
