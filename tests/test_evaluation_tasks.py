"""Files of tasks, and which of them fit together in a plan."""

import pytest
from evaluation_parts import ITEMS, QUESTIONS, TASK, written

from deepen_core.errors import EvaluationError
from deepen_core.evaluation.items import CodeItem, Task, TextItem, TranslationItem
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.task_file import read_task


class TestTasks:
    def test_are_read(self, tmp_path):
        assert read_task(written(tmp_path / "animals.jsonl", ITEMS)) == TASK
        assert read_task(tmp_path / "animals.jsonl", limit=2).items == ITEMS[:2]
        for item in (TextItem("a", "b"), TranslationItem("a", "b")):
            assert read_task(written(tmp_path / "t.jsonl", [item])).items == (item,)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "has no items"),
            ("{", "line 1: it is not JSON"),
            ("\n[]", "line 2: it is a list, not an object"),
            (
                '{"question": "x"}',
                "line 1: it has question, but no choices, answers, test, translation or text. An item is an object",
            ),
            ('{"question": "x", "choices": ["a", "b"]}', "it has no answer"),
            ('{"choices": ["a", "b"], "answer": 0}', "it has no question"),
            ('{"question": "x", "answers": []}', "its answers are not a list of at least one text"),
            ('{"question": "x", "answers": ["1"], "solution": 1}', "its solution is not a text"),
            ('{"question": "x", "answers": ["five"], "solution": "y"}', "its answers are not numbers"),
            ('{"prompt": "x", "test": "y"}', "it has no entry_point"),
            ('{"prompt": "x", "text": ""}', "its text is empty"),
            ('{"translation": "x"}', "it has no source"),
            ('{"source": "", "translation": "x"}', "its source or its translation is empty"),
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
        exercises = Task("code", (CodeItem("def f():", "def check(f): pass", "f"),))
        for plan, message in (
            (Plan([TASK], [Task("other", ITEMS[:1])]), "1 of the items are fitted on or shown too"),
            (Plan([questions], shots=[questions]), "2 of the items are fitted on or shown too"),
            (Plan([texts]), "texts has texts to fit on"),
            (
                Plan([TASK], [exercises], policies=["adaptive"], by="likelihood"),
                "code has exercises, which have no right answer to read: fit by score",
            ),
            (Plan([questions], shots=[TASK]), "animals has no open questions"),
            (Plan([TASK], [texts]), "texts has texts without choices: fit by likelihood"),
            (Plan([TASK], by="luck"), "fitted by score or likelihood, not by 'luck'"),
            (Plan([]), "There is nothing to compare"),
            (Plan([TASK], [Task("none", ())]), "none has no items"),
            (Plan([TASK], mains=[]), "There is nothing to compare"),
            (Plan([TASK], fusions=["x"]), "There is no strategy 'x': choose among deepen"),
            (Plan([TASK], policies=["x"]), "There is no policy 'x': choose among static"),
            (Plan([TASK, Task("animals", QUESTIONS)]), "There are two tasks called animals"),
        ):
            with pytest.raises(EvaluationError, match=message):
                plan.check()
        Plan([TASK, questions], [texts], by="likelihood").check()
        Plan([TASK], [questions, exercises]).check()
        Plan([TASK], [questions, exercises], policies=["adaptive"]).check()
