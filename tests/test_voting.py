"""One of several answers: extraction, majority, minimum Bayes risk and likelihood, against brute force."""

import math
import pickle
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen_core.errors import SamplingError
from deepen_core.voting import Ballot, chrf, extractor, likeliest, majority_vote, minimum_bayes_risk

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "is a", "A.", "", "?"]), min_size=1, max_size=9)


def bare(text):
    """What the texts above come to."""
    return {"A.": "a", "": None, "is a": "is"}.get(text, text)


@pytest.mark.parametrize(
    ("extract", "text", "answer"),
    [
        ("short", " The Lisbon. ", "lisbon"),
        ("short", " 1,200.50.", "1200.5"),
        ("short", "$35", "35"),
        ("short", "3.5", "3.5"),
        ("short", "-3", "-3"),
        ("short", "?!", "?!"),
        ("short", " \n", None),
        ("number", "3 and then 1,000 apples", "1000"),
        ("number", "it is 2.50", "2.5"),
        ("number", "5-10", "10"),
        ("number", "none", None),
        ("answer", "So, the answer is 12. Or the answer is: The Moon! Yes", "moon"),
        ("answer", "Answer:\n 3.50 apples\nmore", "350 apples"),
        ("answer", "2 + 2\n#### 4", "4"),
        ("answer", "The answer is $1,000.", "1000"),
        ("answer", "the answers are many", None),
        (r"x=(\d+)", "x=1 x= 2 x=33 y", "33"),
        (re.compile(r"(a)|b"), "a b", "a"),
        (re.compile(r"(a)|b"), "b", None),
        (str.strip, " x ", "x"),
    ],
)
def test_extraction(extract, text, answer):
    assert extractor(extract)(text) == answer


@pytest.mark.parametrize(
    ("extract", "problem"),
    [
        ("nubmer", "'nubmer', which has no group: give one of short, number, answer, a regular expression"),
        ("(", r"'\(', which is no regular expression"),
        (re.compile("x"), "'x', which has no group"),
        (3, "extract is 3: give one of"),
    ],
)
def test_what_extracts_nothing_is_refused(extract, problem):
    with pytest.raises(SamplingError, match=problem):
        extractor(extract)


class TestMajority:
    @given(TEXTS, st.data())
    def test_is_that_of_brute_force(self, texts, data):
        weights = data.draw(st.lists(st.integers(1, 3), min_size=len(texts), max_size=len(texts)))
        found = majority_vote(texts, weights=weights)
        totals = []
        for text in texts:
            same = [w for other, w in zip(texts, weights, strict=True) if bare(other) == bare(text)]
            totals.append(0 if bare(text) is None else sum(same))
        assert [candidate.score for candidate in found.candidates] == totals
        assert found.place == totals.index(max(totals))
        assert [candidate.answer for candidate in found.candidates] == [bare(text) for text in texts]
        agreeing = max(totals) or weights[found.place]
        assert found.share == pytest.approx(agreeing / sum(weights))
        assert found.text == texts[found.place]
        assert sum(found.votes.values()) == sum(bare(text) is not None for text in texts)

    @given(TEXTS, st.randoms())
    def test_does_not_depend_on_the_order_if_there_is_no_tie(self, texts, chance):
        found = majority_vote(texts)
        if found.answer is not None and list(found.votes.values()).count(max(found.votes.values())) == 1:
            chance.shuffle(texts)
            assert majority_vote(texts).answer == found.answer
            assert majority_vote([*texts, texts[0]] * 3, weights=[*([1] * len(texts)), 0] * 3).answer == found.answer

    @given(TEXTS)
    def test_the_likeliest_decides_among_those_that_have_most_votes(self, texts):
        asked = []

        def likelihood(different):
            asked.append(list(different))
            return [-len(text) - ord((text or "~")[-1]) for text in different]

        found, first = majority_vote(texts, likelihood=likelihood), majority_vote(texts)
        top = {t for t, c in zip(texts, first.candidates, strict=True) if c.score == first.chosen.score}
        assert found.chosen.score == first.chosen.score
        assert found.text == max(top, key=lambda text: likelihood([text])[0])
        assert [set(different) for different in asked[: len(top) > 1]] == [top] * (len(top) > 1)

    def test_answers_are_counted_and_not_texts(self):
        texts = ["3 + 4 = 7", "1 + 1 = 3", "So it is 7.", "8"]
        found = majority_vote(texts, extract="number")
        assert (found.text, found.answer, found.share) == ("3 + 4 = 7", "7", 0.5)
        assert found.votes == {"7": 2, "3": 1, "8": 1}
        assert majority_vote(texts, extract="number", weights=[1, 1, 1, 3]).text == "8"
        assert majority_vote(texts, extract="number", likelihood=lambda t: [-len(x) for x in t]).text == "3 + 4 = 7"

    def test_without_any_answer_there_is_no_vote(self):
        found = majority_vote(["x", "y"], extract="number")
        assert (found.place, found.answer, found.share, found.votes) == (0, None, 0.5, {})
        assert found.chosen.score == 0


class TestMinimumBayesRisk:
    @given(TEXTS, st.data())
    def test_is_that_of_brute_force(self, texts, data):
        weights = data.draw(st.lists(st.integers(1, 3), min_size=len(texts), max_size=len(texts)))
        table = {(h, r): data.draw(st.integers(0, 5)) for h in set(texts) for r in set(texts)}
        calls = []

        def utility(hypothesis, reference):
            calls.append((hypothesis, reference))
            return table[hypothesis, reference]

        found = minimum_bayes_risk(texts, utility, weights=weights)
        expected = []
        for place, text in enumerate(texts):
            others = [(r, w) for n, (r, w) in enumerate(zip(texts, weights, strict=True)) if n != place]
            total = sum(w for _, w in others)
            expected.append(sum(w * table[text, r] for r, w in others) / total if others else 0)
        assert [candidate.score for candidate in found.candidates] == pytest.approx(expected)
        assert expected[found.place] == pytest.approx(max(expected))
        assert len(calls) == len(set(calls))

    def test_by_chrf_of_sacrebleu(self):
        from sacrebleu.metrics import CHRF

        texts = ["The cat sat on a mat.", "A cat sat on the mat.", "The cat sat on the mat.", "Dogs bark."]
        found = minimum_bayes_risk(texts)
        metric = CHRF()
        each = [[metric.sentence_score(h, [r]).score for r in texts if r is not h] for h in texts]
        assert [candidate.score for candidate in found.candidates] == pytest.approx([sum(one) / 3 for one in each])
        assert found.text == "The cat sat on the mat."
        assert 0 <= chrf()("x", "abc") < chrf()("abd", "abc") < chrf()("abc", "abc") == pytest.approx(100)

    def test_without_sacrebleu_the_error_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
        for work in (lambda: Ballot("mbr"), lambda: minimum_bayes_risk(["a", "b"])):
            with pytest.raises(SamplingError, match=r"pip install 'deepen-integrations\[voting\]', or give a utility"):
                work()
        assert minimum_bayes_risk(["a", "b", "b"], lambda h, r: h == r).text == "b"

    def test_a_single_answer_and_weights_of_zero(self):
        def utility(hypothesis, reference):
            assert "no" not in (hypothesis, reference)[1:], "nothing counts as little as this"
            return float(hypothesis == reference)

        assert minimum_bayes_risk(["a"], utility).chosen.score == 0
        assert minimum_bayes_risk(["no", "a", "a"], utility, weights=[0, 1, 1]).text == "a"


class TestLikeliest:
    def test_is_the_first_of_the_likeliest(self):
        asked = []

        def likelihood(texts):
            asked.append(texts)
            return [{"a": -2.0, "b": -1.0, "c": -1.0, "": -math.inf}[text] for text in texts]

        found = likeliest(["a", "", "c", "b", "c"], likelihood)
        assert (found.place, found.text, found.share) == (2, "c", 0.4)
        assert [candidate.score for candidate in found.candidates] == [-2, None, -1, -1, -1]
        assert asked == [["a", "", "c", "b"]]
        assert likeliest(["", ""], likelihood).text == ""


class TestBallot:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"by": "luck"}, "chosen by majority, mbr, likelihood, not by 'luck'"),
            ({"by": "majority", "utility": max}, "A utility is for by='mbr', not for by='majority'"),
            ({"extract": "luck"}, "which has no group"),
        ],
    )
    def test_wrong_options(self, options, problem):
        with pytest.raises(SamplingError, match=problem):
            Ballot(**options)

    @pytest.mark.parametrize(
        ("weights", "problem"),
        [
            ([1], "1 weights for 2 answers"),
            ([1, -1], r"The weights are \[1, -1\]"),
            ([math.nan, 1], "finite"),
            ([0, 0], "nor all 0"),
        ],
    )
    def test_wrong_weights(self, weights, problem):
        for by in ("majority", "mbr"):
            with pytest.raises(SamplingError, match=problem):
                Ballot(by, utility=None if by == "majority" else lambda h, r: 0).choose(["a", "b"], weights=weights)

    def test_what_is_missing(self):
        with pytest.raises(SamplingError, match="There are no answers to choose from"):
            Ballot().choose([])
        with pytest.raises(SamplingError, match="needs to know how likely"):
            Ballot("likelihood").choose(["a"])

    def test_each_way_is_its_function(self):
        texts = ["a", "b", "b", "bb"]
        likelihood = lambda different: [float(text == "bb") for text in different]  # noqa: E731
        utility = lambda h, r: float(h == "a")  # noqa: E731
        assert Ballot().choose(texts) == majority_vote(texts)
        assert Ballot("mbr", utility=utility).choose(texts) == minimum_bayes_risk(texts, utility)
        assert Ballot("likelihood").choose(texts, likelihood) == likeliest(texts, likelihood)
        assert [Ballot().choose(texts).by, Ballot("likelihood").choose(texts, likelihood).text] == ["majority", "bb"]


def test_choices_and_ballots_can_be_saved():
    for saved in (majority_vote(["a", "b"]), Ballot(extract=r"x=(\d)"), Ballot(extract="number")):
        assert pickle.loads(pickle.dumps(saved)) == saved
    assert pickle.loads(pickle.dumps(extractor(r"x=(\d)")))("x=1") == "1"
