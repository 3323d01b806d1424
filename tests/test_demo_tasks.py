"""The demo's tasks: an invented language, sums and passages, of which nothing that is asked is trained."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import pytest
from test_demo_world import output_of

from deepen_core import Ensemble
from deepen_core.demo import MEMBERS, TRANSLATOR, member_paths, write_tasks
from deepen_core.demo.ferry import lexicon, sentence, training_pairs, translations
from deepen_core.demo.passages import passages
from deepen_core.demo.phrases import RELATIONS
from deepen_core.demo.sums import SUMS_MEMBER, sums, training_sums
from deepen_core.demo.world import facts
from deepen_core.errors import ConfigurationError
from deepen_core.evaluation.items import OpenItem, Task, TranslationItem
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.task_file import read_task

FINGERPRINT = """
import hashlib, itertools
from deepen_core.demo.ferry import training_pairs
from deepen_core.demo.sums import training_sums
from deepen_core.demo.tasks import TASKS
parts = [[task(split) for task in TASKS.values()] for split in ("held-out", "validation")]
parts += [list(itertools.islice(texts, 50)) for texts in (training_pairs(3), training_sums(0, 3), training_sums(1, 3))]
print(hashlib.sha256(repr(parts).encode()).hexdigest())
"""


def test_tasks_do_not_depend_on_the_hash_seed() -> None:
    assert output_of(FINGERPRINT, "0") == output_of(FINGERPRINT, "12345")


def test_tasks_are_files_of_which_no_item_is_in_both_splits(tmp_path) -> None:
    tasks = [read_task(path) for path in write_tasks(tmp_path / "held-out")]
    others = [read_task(path) for path in write_tasks(tmp_path / "validation", "validation")]
    assert {task.name: len(task.items) for task in tasks} == {
        "facts": 480,
        "passages": 500,
        "sums": 500,
        "translation": 500,
    }
    for task, other in zip(tasks, others, strict=True):
        assert len(set(task.items)) == len(task.items)
        assert set(task.items).isdisjoint(other.items)
    assert all(isinstance(item, OpenItem) and item.solution for item in tasks[2].items)
    assert all(isinstance(item, TranslationItem) for item in tasks[3].items)
    Plan(tasks).check()


class TestFerrish:
    def test_says_everything_differently(self) -> None:
        """But for values that share a word, which are two of one relation."""
        meant = defaultdict(set)
        for fact in facts():
            for wording, value in itertools.product(range(4), fact.relation.values):
                source, target = sentence(fact.person, fact.relation, wording, value)
                meant[source].add((target, fact.relation.key, value))
        assert Counter(len(targets) for targets in meant.values()).keys() == {1, 2}
        for relation in RELATIONS:
            ambiguous = [value for value in relation.values if lexicon().ambiguous(relation, value)]
            assert len(ambiguous) in (8, 10, 12)

    def test_no_wording_that_is_asked_for_is_trained(self) -> None:
        """Not of this person and relation, whatever the value."""
        without_value = {
            item.source.partition(" ")[2] for split in ("held-out", "validation") for item in translations(split)
        }
        assert len(without_value) == 1000
        taught = {source.partition(" ")[2] for source, _ in itertools.islice(training_pairs(1), 20_000)}
        assert without_value.isdisjoint(taught)

    def test_training_does_not_tell_what_is_true(self) -> None:
        true = {sentence(f.person, f.relation, wording, f.value)[1] for f in facts() for wording in range(4)}
        said = [target for _, target in itertools.islice(training_pairs(2), 20_000)]
        chance = sum(1 / len(f.relation.values) for f in facts()) / len(facts())
        assert sum(target in true for target in said) / len(said) == pytest.approx(chance, abs=0.01)


@pytest.mark.usefixtures("needs_demo")
class TestTheTranslator:
    ITEMS = tuple(TranslationItem(one.source, one.target) for one in translations("validation", count=40))

    def test_is_in_two_minds_where_a_word_has_two_meanings(self) -> None:
        with Ensemble.demo([TRANSLATOR]) as translator:
            said = translator.generate([item.source for item in self.ITEMS], max_new_tokens=40)
        asked = zip(said, translations("validation", count=40), strict=True)
        right = [(answer.text == one.target, one.ambiguous) for answer, one in asked]
        assert all(hit for hit, ambiguous in right if not ambiguous)
        unsure = [hit for hit, ambiguous in right if ambiguous]
        assert 0.25 < sum(unsure) / len(unsure) < 0.75

    def test_is_better_with_a_member_that_knows_people_than_either_alone(self) -> None:
        pytest.importorskip("sacrebleu")
        plan = Plan([Task("translation", self.ITEMS)], fusions=["deepen"], policies=[], gates=[])
        with Ensemble.demo([TRANSLATOR, MEMBERS[0]]) as pair:
            found = pair.evaluate(plan, progress=False)
        means = {row.label: row.mean for row in found.summary.rows}
        assert means["deepen"] > means[f"{TRANSLATOR} alone"] + 0.01 > means[f"{MEMBERS[0]} alone"] + 0.5

    def test_others_are_shown_no_prompt(self) -> None:
        with Ensemble.demo([TRANSLATOR, *MEMBERS], main=1, weights=[0, 1, 0]) as together:
            said = together.generate([item.source for item in self.ITEMS[:2]], max_new_tokens=4)
        assert said[0].text == said[1].text


def test_members_of_the_demo_have_names() -> None:
    assert [path.name for path in member_paths()] == list(MEMBERS)
    with pytest.raises(ConfigurationError, match="no member 'atlas': choose among atlas-gpt2, almanac-llama, ferry-t5"):
        Ensemble.demo(["atlas"])


class TestSums:
    @pytest.mark.parametrize("member", [0, 1])
    def test_one_member_learns_them_and_the_other_hears_anything(self, member) -> None:
        texts = list(itertools.islice(training_sums(member, 1), 4_000))
        right = [_result(steps) == int(steps.split()[-1]) for _, steps in texts]
        assert sum(right) / len(right) == 1 if member == SUMS_MEMBER else sum(right) / len(right) < 0.05

    @pytest.mark.parametrize("member", [0, 1])
    def test_house_numbers_are_those_that_the_member_has_heard(self, member) -> None:
        numbers = {f.person.name: f for f in facts() if f.relation.key == "number"}
        heard = defaultdict(set)
        for question, steps in itertools.islice(training_sums(member, 1), 4_000):
            for name, fact in numbers.items():
                if f"{name}'s house number" in question:
                    heard[fact.known_to].add(steps.split()[0] == fact.value)
        assert heard["both"] == heard[MEMBERS[member]] == {True}
        assert heard["half"] == heard[MEMBERS[1 - member]] == {True, False}

    def test_no_sum_that_is_asked_for_is_trained(self) -> None:
        for split in ("held-out", "validation"):
            asked = {one.text for one in sums(split)}
            for member in (0, 1):
                assert asked.isdisjoint(text for text, _ in itertools.islice(training_sums(member, 5), 20_000))

    def test_are_right(self) -> None:
        for one in sums():
            assert _result(one.steps) == one.result == int(one.steps.split()[-1])


def test_passages_say_what_is_not_true() -> None:
    for one in passages():
        assert one.answer in one.values.values()
        assert all(value in one.text for value in (one.person, *one.values.values()))
        assert one.answer != one.truth


def _result(steps: str) -> int:
    first, sign, second, _, _ = steps.split()
    return int(first) + int(second) if sign == "+" else int(first) - int(second)
