"""From the scores of items to a table and advice."""

import math
import random
from dataclasses import replace

import pytest
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen_core.evaluation.evaluation import rights, rights_of_members
from deepen_core.evaluation.items import ChoiceItem, Task
from deepen_core.evaluation.likelihood import ChoiceScores, chosen, voted
from deepen_core.evaluation.settings import Setting
from deepen_core.evaluation.statistics import paired_difference
from deepen_core.evaluation.summary import summarised


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
        assert found.advice.endswith(").")
        options = {("deepen", "a"): Setting("deepen", (0.5, 0.5), 0.9).options}
        told = summarised(self.MEMBERS, ways, options).advice
        assert told == f"{found.advice} Options: --fusion deepen --weights 0.5,0.5 --gate 0.9"

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
    assert voted({"a": values, "b": [1.0] * len(values)}) == pytest.approx([v + 1 for v in values])


def test_items_answered_right():
    scores = [ChoiceScores([1, 10, 1], {"a": [-1, -5, -3], "b": [-5, -5, -1]}, {"deepen 1": [-2, -9, -9]})] * 2
    task = Task("x", (ChoiceItem("?", ("x", "y", "z"), 1), ChoiceItem("?", ("x", "y", "z"), 2)))
    assert rights_of_members(task, scores) == {"a alone": [1, 0], "b alone": [1, 0], "vote": [1, 0]}
    assert rights(task, scores, {"it": Setting("deepen", (1.0,))}) == {"it": [1, 0]}
